"""Makes the embedded model from nothing: every stage in order, skipping those that are finished.

A stage is finished when its result is there; delete the result to run it again. The whole takes about
an hour and a half on two CPU cores, nearly all of it in the two trainings.
"""

import argparse
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import torch

from cache_latents import LATENTS_FILE, cache_latents
from drawings import Drawings, fetch
from evaluate import draw_grid, load_painter
from example_datasets import make_datasets
from networks import prepare
from tokenizer import train_tokenizer
from train import train
from vae import polish_decoder, train_vae


def make(work: Path, vae_minutes: float, train_minutes: float, polish_minutes: float) -> Path:
    """Run the stages that are not finished; return the folder with what is to be shipped."""
    work.mkdir(parents=True, exist_ok=True)
    drawings = Drawings(fetch(work))
    vae, tokenizer, latents, polished = (work / name for name in ("vae", "tokenizer", "latents", "vae_polished"))
    networks, training, assets = (work / name for name in ("networks", "training", "assets"))
    model, datasets, samples = training / "model", assets / "datasets", work / "samples.png"

    _stage("tokenizer", tokenizer / "tokenizer.json", lambda: train_tokenizer(drawings, tokenizer))
    _stage("vae", vae / "config.json", lambda: train_vae(drawings, vae, vae_minutes * 60))
    _stage("latents", latents / LATENTS_FILE, lambda: cache_latents(drawings, vae, latents))
    _stage("networks", networks / "model_index.json", lambda: prepare(networks, vae, tokenizer))
    _stage("training", model, lambda: train(networks, latents, training, train_minutes, save_minutes=10.0))
    _stage("decoder", polished / "config.json", lambda: polish_decoder(drawings, vae, polished, polish_minutes * 60))
    _stage("datasets", datasets / "blueprint" / "metadata.csv", lambda: make_datasets(drawings, datasets))
    _stage("model", assets / "tiny", lambda: assemble(model, polished, assets / "tiny"))
    _stage("samples", samples, lambda: draw_grid(load_painter(assets / "tiny")).save(samples))
    return assets


def assemble(model: Path, vae: Path, folder: Path) -> None:
    """Write the trained model with the polished autoencoder, and let everyone read its files."""
    shutil.copytree(model, folder)
    shutil.copytree(vae, folder / "vae", dirs_exist_ok=True)
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(0o644)


def _stage(name: str, result: Path, run: Callable[[], object]) -> None:
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
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    assets = make(options.work, options.vae_minutes, options.train_minutes, options.polish_minutes)
    print(f"made {assets}")


if __name__ == "__main__":
    main()
