"""Makes the embedded models from nothing: every stage in order, skipping those that are finished.

A stage is finished when its result is there; delete the result to run it again. The whole takes about
three hours on two CPU cores, nearly all of it in the trainings.
"""

import argparse
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import torch

from cache_edits import PICTURES_FILE, cache_edits
from cache_latents import LATENTS_FILE, cache_latents
from drawings import Drawings, fetch
from dsctl_core.checkpoint.defaults import write_defaults
from dsctl_core.families import find_preset
from evaluate import draw_grid, load_painter
from evaluate_edits import draw_grid as draw_edits
from evaluate_edits import load_editor
from example_datasets import make_datasets
from networks import prepare
from networks_edit import prepare_edit
from tokenizer import train_tokenizer
from train import train
from train_edits import train_edits
from vae import polish_decoder, train_vae


def make(work: Path, options: argparse.Namespace) -> Path:
    """Run the stages that are not finished; return the folder with what is to be shipped."""
    assets = make_from_text(work, options)
    make_edit(work, assets, options)
    return assets


def make_from_text(work: Path, options: argparse.Namespace) -> Path:
    """Make the text-to-image model and the example datasets; return their folder."""
    work.mkdir(parents=True, exist_ok=True)
    drawings = Drawings(fetch(work))
    vae, tokenizer, latents, polished = (work / name for name in ("vae", "tokenizer", "latents", "vae_polished"))
    networks, training, assets = (work / name for name in ("networks", "training", "assets"))
    model, datasets, samples = training / "model", assets / "datasets", work / "samples.png"

    stage("tokenizer", tokenizer / "tokenizer.json", lambda: train_tokenizer(drawings, tokenizer))
    stage("vae", vae / "config.json", lambda: train_vae(drawings, vae, options.vae_minutes * 60))
    stage("latents", latents / LATENTS_FILE, lambda: cache_latents(drawings, vae, latents))
    stage("networks", networks / "model_index.json", lambda: prepare(networks, vae, tokenizer))
    stage("training", model, lambda: train(networks, latents, training, options.train_minutes, save_minutes=10.0))
    stage(
        "decoder",
        polished / "config.json",
        lambda: polish_decoder(drawings, vae, polished, options.polish_minutes * 60),
    )
    stage("datasets", datasets / "frame_edit" / "metadata.csv", lambda: make_datasets(drawings, datasets))
    stage("model", assets / "tiny", lambda: assemble(model, polished, assets / "tiny"))
    stage("samples", samples, lambda: draw_grid(load_painter(assets / "tiny")).save(samples))
    return assets


def make_edit(work: Path, assets: Path, options: argparse.Namespace) -> None:
    """Make the editing model from the text-to-image model, with the autoencoder and the tokenizer of that."""
    drawings = Drawings(fetch(work))
    edits, networks, training, samples = (
        work / name for name in ("edits", "networks_edit", "training_edit", "edits.png")
    )
    tiny, model = assets / "tiny", training / "model"

    def run_training() -> None:
        minutes, precision = options.edit_minutes, options.edit_precision
        train_edits(networks, edits, work / "latents", training, minutes, 10.0, precision)

    stage("edits", edits / PICTURES_FILE, lambda: cache_edits(drawings, tiny / "vae", edits))
    stage("edit networks", networks / "model_index.json", lambda: prepare_edit(networks, tiny))
    stage("edit training", model, run_training)
    stage("edit model", assets / "tiny-edit", lambda: assemble_edit(model, assets / "tiny-edit"))
    stage("edit samples", samples, lambda: draw_edits(load_editor(str(model), drawings), drawings).save(samples))


def assemble(model: Path, vae: Path, folder: Path) -> None:
    """Write the trained model with the polished autoencoder into a folder with the name of its preset."""
    shutil.copytree(model, folder)
    shutil.copytree(vae, folder / "vae", dirs_exist_ok=True)
    _finish(folder, folder.name)


def assemble_edit(model: Path, folder: Path) -> None:
    """Write what the editing model does not share with the text-to-image model."""
    shutil.copytree(model, folder, ignore=shutil.ignore_patterns("vae", "tokenizer"))
    _finish(folder, "tiny-edit")


def _finish(folder: Path, preset: str) -> None:
    """Write the preset's defaults, take the traces of this machine out of the configs, and let everyone read them."""
    write_defaults(folder, find_preset(preset)[1].defaults)
    for file in folder.rglob("config.json"):
        config = json.loads(file.read_text())
        config.pop("_name_or_path", None)
        for part in config.values():
            if isinstance(part, dict):
                part.pop("dtype", None)  # the whole has one
        file.write_text(json.dumps(config, indent=2) + "\n")
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(0o644)


def stage(name: str, result: Path, run: Callable[[], object]) -> None:
    """Run a stage and print how long it took, unless its result is there."""
    if result.exists():
        print(f"{name}: finished before")
        return
    start = time.monotonic()
    run()
    print(f"{name}: {time.monotonic() - start:.0f} s")


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/embedded_model"))
    parser.add_argument("--vae-minutes", type=float, default=22.0)
    parser.add_argument("--train-minutes", type=float, default=56.0)
    parser.add_argument("--polish-minutes", type=float, default=12.0)
    parser.add_argument("--edit-minutes", type=float, default=60.0)
    parser.add_argument("--edit-precision", choices=("bf16", "no"), default="bf16", help="no: float32")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    assets = make(options.work, options)
    print(f"made {assets}")


if __name__ == "__main__":
    main()
