"""Draws the edits of a list, all at once: a line has a picture of the dataset `robot`, a colon and an instruction.

For one edit, `dsctl infer --model tiny-edit --edit-image PICTURE --prompt INSTRUCTION` does the same.
"""

import argparse
from pathlib import Path

import torch
from PIL import Image

from dsctl_core import ModelConfig, QwenImageEditPipeline, assets_path, load_lora

PICTURES = assets_path("datasets/robot")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--edits", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True, help="folder for the results")
    parser.add_argument("--sources", type=Path, help="folder for copies of the pictures that are edited")
    parser.add_argument("--lora", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    lines = [line for line in given.edits.read_text(encoding="utf-8").splitlines() if line.strip()]
    pictures, instructions = zip(*(line.split(": ", 1) for line in lines), strict=True)
    sources = [Image.open(PICTURES / name).convert("RGB") for name in pictures]
    # The preset tiny-edit: its own networks, and the autoencoder and the tokenizer of tiny.
    pipe = QwenImageEditPipeline.from_pretrained(
        torch_dtype=torch.float32,
        device="cpu",
        model_configs=[ModelConfig(assets_path("tiny-edit")), ModelConfig(assets_path("tiny/vae"))],
        tokenizer_config=ModelConfig(assets_path("tiny/tokenizer")),
    )
    if given.lora:
        load_lora(pipe, given.lora)
    results = pipe(
        prompt=list(instructions),
        edit_image=[[source] for source in sources],
        seed=[given.seed + number for number in range(len(lines))],
    )
    for folder, images in ((given.output, results), (given.sources, sources)):
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            for number, image in enumerate(images, 1):
                image.save(folder / f"picture-{number:03}.png")


if __name__ == "__main__":
    main()
