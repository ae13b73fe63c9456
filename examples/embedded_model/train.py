"""Trains the transformer and the text encoder together, through the project's own training loop."""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from cache_latents import CAPTIONS_FILE, LATENTS_FILE
from joint_training import STEPS_WITHOUT_END, JointTraining, Recipe, command_line, plain_products, run

BATCH = 64
EMPTY_CAPTIONS = 0.1
RECIPE = Recipe(learning_rate=1.2e-3, warm_up=300, longest=1000, kernel=plain_products)


class Batches(Dataset):
    """Batches of latents and captions whose captions have one length in tokens, so nothing is padded.

    Batch `i` depends on the seed and on `i` alone.
    """

    def __init__(self, folder: Path, tokenizer: PreTrainedTokenizerBase, seed: int = 0, batch: int = BATCH) -> None:
        self.batch = batch
        self.latents = load_file(folder / LATENTS_FILE)["latents"]
        self.seed = seed
        texts = [json.loads(line) for line in (folder / CAPTIONS_FILE).read_text().splitlines()]
        pairs = [(scene, text) for scene, several in enumerate(texts) for text in several]
        lengths = [len(ids) for ids in tokenizer([text for _, text in pairs]).input_ids]
        self.by_length: dict[int, list[tuple[int, str]]] = {}
        for length, pair in zip(lengths, pairs, strict=True):
            self.by_length.setdefault(length, []).append(pair)
        sizes = np.array([len(group) for group in self.by_length.values()], dtype=np.float64)
        self.lengths, self.shares = list(self.by_length), sizes / sizes.sum()

    def __len__(self) -> int:
        return STEPS_WITHOUT_END // 100

    def __getitem__(self, index: int) -> dict[str, object]:
        rng = np.random.default_rng((self.seed, index))
        group = self.by_length[self.lengths[rng.choice(len(self.lengths), p=self.shares)]]
        chosen = [group[i] for i in rng.integers(len(group), size=self.batch)]
        prompts = [text for _, text in chosen]
        if rng.random() < EMPTY_CAPTIONS:  # for classifier-free guidance
            prompts = [""] * self.batch
        return {
            "prompt": prompts,
            "input_latents": self.latents[[scene for scene, _ in chosen]].float(),
            "timestep_bins": torch.from_numpy((np.arange(self.batch) + rng.random(self.batch)) / self.batch),
        }


def train(folder: Path, latents: Path, output: Path, minutes: float, save_minutes: float) -> Path:
    """Train the networks in `folder` on cached latents; return the folder of the averaged model."""

    def build() -> tuple[JointTraining, Dataset]:
        module = JointTraining(folder)
        return module, Batches(latents, module.pipe.tokenizer)

    return run(build, RECIPE, folder, output, minutes, save_minutes)


def main() -> None:
    """Run from the command line."""
    options = command_line(__doc__, minutes=75.0, save_minutes=10.0, threads=2).parse_args()
    torch.set_num_threads(options.threads)
    train(options.folder, options.latents, options.output, options.minutes, options.save_minutes)


if __name__ == "__main__":
    main()
