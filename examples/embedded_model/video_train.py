"""Trains the video model's transformer and text encoder together, through the project's own training loop.

Wan pads every text to 512 tokens of zeros and attends to them all. Equal tokens have equal keys and values, so n of
them count as one whose score is larger by log(n): training attends to the text and to one such token, and the result
is the same at a fortieth of the cost.
"""

import json
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from dsctl_core import WanPipeline
from dsctl_core.losses.timesteps import Objective
from joint_training import STEPS_WITHOUT_END, JointTraining, Recipe, command_line, plain_products, run
from video_latents import CAPTIONS_FILE, LATENTS_FILE
from video_networks import TEXT_TOKENS

BATCHES = {"clips": 24, "pictures": 64}
PICTURE_SHARE, EMPTY_CAPTIONS, CAPITALS = 0.06, 0.1, 0.1
RECIPE = Recipe(
    learning_rate=1.5e-3,
    warm_up=60,
    longest=900,
    precision="no",
    product_dtype=torch.float32,
    kernel=plain_products,
)


class ClipBatches(Dataset):
    """Batches of clips, or of pictures, whose captions have one length in tokens, so nothing is padded.

    Batch `i` depends on the seed and on `i` alone.
    """

    def __init__(self, folder: Path, tokenizer: PreTrainedTokenizerBase, seed: int = 0) -> None:
        self.latents, self.seed = load_file(folder / LATENTS_FILE), seed
        captions = json.loads((folder / CAPTIONS_FILE).read_text())
        self.groups: dict[str, list[list[tuple[int, str]]]] = {}
        for kind, several in captions.items():
            pairs = [(place, text) for place, texts in enumerate(several) for text in texts]
            by_length: dict[int, list[tuple[int, str]]] = {}
            for pair, ids in zip(pairs, tokenizer([text for _, text in pairs]).input_ids, strict=True):
                by_length.setdefault(len(ids), []).append(pair)
            self.groups[kind] = list(by_length.values())

    def __len__(self) -> int:
        return STEPS_WITHOUT_END // 100

    def __getitem__(self, index: int) -> dict[str, object]:
        rng = np.random.default_rng((self.seed, index))
        kind = "pictures" if rng.random() < PICTURE_SHARE else "clips"
        groups, count = self.groups[kind], BATCHES[kind]
        sizes = np.array([len(group) for group in groups], dtype=np.float64)
        group = groups[rng.choice(len(groups), p=sizes / sizes.sum())]
        chosen = [group[i] for i in rng.integers(len(group), size=count)]
        prompts = [text for _, text in chosen]
        if rng.random() < EMPTY_CAPTIONS:  # for classifier-free guidance
            prompts = [""] * count
        elif rng.random() < CAPITALS:
            prompts = [text[0].upper() + text[1:] for text in prompts]
        return {
            "prompt": prompts,
            "input_latents": self.latents[kind][[place for place, _ in chosen]].float(),
            "timestep_bins": torch.from_numpy((np.arange(count) + rng.random(count)) / count),
        }


class OnePaddingToken:
    """Attention to a text whose last token stands for all of its padding: self-attention is left to the official one.

    `n` is set before each pass of the network: how many tokens the last one stands for.
    """

    n = 1

    def __call__(self, attn: nn.Module, hidden_states: Tensor, encoder_hidden_states: Tensor, *_: object) -> Tensor:
        """Return what the official processor does for the text with all of its padding, (B, L, D)."""
        heads = (attn.heads, -1)
        query = attn.norm_q(attn.to_q(hidden_states)).unflatten(2, heads).transpose(1, 2)
        key = attn.norm_k(attn.to_k(encoder_hidden_states)).unflatten(2, heads).transpose(1, 2)
        value = attn.to_v(encoder_hidden_states).unflatten(2, heads).transpose(1, 2)
        more = torch.zeros(key.shape[2])
        more[-1] = math.log(self.n)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=more.expand(1, 1, query.shape[2], -1))
        return attn.to_out[0](mixed.transpose(1, 2).flatten(2))


class JointClipTraining(JointTraining):
    """Trains the denoiser and the text encoder of Wan on one loss."""

    pipeline = WanPipeline
    objective = Objective(weighting="none")  # where a thing is and goes is decided at the high levels

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.padding = OnePaddingToken()
        for block in self.pipe.dit.blocks:
            block.attn2.set_processor(self.padding)
        self.pipe.model_fn = self.velocity

    def encode(self, prompts: list[str], prefix: Tensor | None = None) -> Tensor:
        """Return the text encoder's hidden states (B, T, D) for prompts of one length; Wan puts no prefix before them.

        Equal prompts are run once.
        """
        ids = self.pipe.tokenizer(prompts, return_tensors="pt").input_ids
        different, places = torch.unique(ids, dim=0, return_inverse=True)
        return self.pipe.text_encoder(input_ids=different).last_hidden_state[places]

    def velocity(self, dit: nn.Module, latents: Tensor, timestep: Tensor, prompt_embeds: Tensor) -> Tensor:
        """Return the velocity of latents (B, 16, t, h, w), as `model_fn_wan` does."""
        self.padding.n = TEXT_TOKENS - prompt_embeds.shape[1]
        text = F.pad(prompt_embeds, (0, 0, 0, 1))
        return dit(latents, timestep, text, return_dict=False)[0]


def train(folder: Path, latents: Path, output: Path, minutes: float, save_minutes: float) -> Path:
    """Train the networks in `folder` on cached latents; return the folder of the averaged model."""

    def build() -> tuple[JointTraining, Dataset]:
        module = JointClipTraining(folder)
        return module, ClipBatches(latents, module.pipe.tokenizer)

    return run(build, RECIPE, folder, output, minutes, save_minutes)


def main() -> None:
    """Run from the command line."""
    options = command_line(__doc__, minutes=45.0, save_minutes=5.0, threads=1).parse_args()
    torch.set_num_threads(options.threads)
    train(options.folder, options.latents, options.output, options.minutes, options.save_minutes)


if __name__ == "__main__":
    main()
