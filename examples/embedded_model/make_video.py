"""Makes the embedded video model from nothing but the embedded picture model's autoencoder: every stage in order.

A stage is finished when its result is there, and is skipped; delete the result to run it again. The transformer and the
autoencoder's decoder do not need each other, so they train at the same time, each on one core.
"""

import argparse
import multiprocessing
from pathlib import Path

import torch

from drawings import Drawings, fetch
from dsctl_core.assets import assets_path
from make import assemble, stage
from video_datasets import make_moves_down
from video_evaluate import SHEET, contact_sheet, load_filmer
from video_latents import LATENTS_FILE, cache_latents
from video_networks import prepare
from video_tokenizer import make_tokenizer
from video_train import train
from video_vae import prepare_vae, train_decoder
from video_world import clip_captions


def make(work: Path, train_minutes: float, decoder_minutes: float) -> Path:
    """Run the stages that are not finished; return the folder with what is to be shipped."""
    work.mkdir(parents=True, exist_ok=True)
    drawings = Drawings(fetch(work))
    tokenizer, vae, decoder, latents = (work / f"video_{name}" for name in ("tokenizer", "vae", "decoder", "latents"))
    networks, training, assets = (work / name for name in ("video_networks", "video_training", "assets"))
    samples, dataset = work / "video_samples.png", assets / "datasets" / "moves_down"

    stage("tokenizer", tokenizer / "tokenizer.json", lambda: make_tokenizer(drawings, tokenizer))
    stage("autoencoder", vae / "config.json", lambda: prepare_vae(drawings, assets_path("tiny") / "vae", vae))
    beside = multiprocessing.get_context("spawn").Process(target=_decoder, args=(work, vae, decoder, decoder_minutes))
    beside.start()
    stage("latents", latents / LATENTS_FILE, lambda: cache_latents(drawings, vae, latents))
    stage("networks", networks / "model_index.json", lambda: prepare(networks, vae, tokenizer))
    stage("training", training / "model", lambda: train(networks, latents, training, train_minutes, 5.0))
    beside.join()
    if beside.exitcode:
        raise SystemExit(f"the decoder's training ended with {beside.exitcode}")
    stage("dataset", dataset / "metadata.csv", lambda: make_moves_down(drawings, dataset))
    stage("model", assets / "tiny-video", lambda: assemble(training / "model", decoder, assets / "tiny-video"))
    prompts = [clip_captions(action)[0] for action in SHEET]
    stage("samples", samples, lambda: contact_sheet(load_filmer(assets / "tiny-video")(prompts)).save(samples))
    return assets


def _decoder(work: Path, start: Path, folder: Path, minutes: float) -> None:
    torch.set_num_threads(1)
    drawings, partial = Drawings(fetch(work)), work / "video_decoder_partial"

    def run() -> None:
        train_decoder(drawings, start, partial, minutes * 60)
        partial.rename(folder)

    stage("decoder", folder, run)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/embedded_model"))
    parser.add_argument("--train-minutes", type=float, default=52.0)
    parser.add_argument("--decoder-minutes", type=float, default=52.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"made {make(options.work, options.train_minutes, options.decoder_minutes)}")


if __name__ == "__main__":
    main()
