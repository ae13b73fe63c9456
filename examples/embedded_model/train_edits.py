"""Trains the editing model: edits, and pictures from text in a third of the batches, as `joint_training.py` does."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from cache_edits import INSTRUCTIONS_FILE, PICTURES_FILE
from dsctl_core import FlowMatchSFTLoss
from dsctl_core.families.qwen_image.latents import pack
from dsctl_core.families.qwen_image_edit.pipeline import QwenImageEditPipeline
from dsctl_core.families.qwen_image_edit.units import PromptWithImagesEmbedder
from joint_training import STEPS_WITHOUT_END, JointTraining, Recipe, command_line, run
from tokenizer import EDIT_PREFIX
from train import Batches

BATCH = 32
RECIPE = Recipe(learning_rate=1.0e-3, warm_up=60, longest=1000, ema=0.995)
FROM_TEXT, NO_INSTRUCTION = 1 / 3, 0.1
BLANK = " "  # the negative prompt of an edit
PATCH, MERGED = 14, 2  # pixels of a patch of the vision tower; patches of a token's side


class MixedBatches(Dataset):
    """Batches of edits whose instructions have one length in tokens, and batches of pictures from text.

    Batch `i` depends on the seed and on `i` alone.
    """

    def __init__(self, edits: Path, latents: Path, tokenizer: PreTrainedTokenizerBase, seed: int = 0) -> None:
        self.from_text = Batches(latents, tokenizer, seed + 1, BATCH)
        pictures = load_file(edits / PICTURES_FILE)
        self.latents, self.seen, self.seed = pictures["latents"], pictures["seen"], seed
        lines = [json.loads(line) for line in (edits / INSTRUCTIONS_FILE).read_text().splitlines()]
        rows = [(line["sources"], line["target"], text) for line in lines for text in line["wordings"]]
        lengths = [len(ids) for ids in tokenizer([text for *_, text in rows]).input_ids]
        self.groups: dict[tuple[int, int], list[tuple[list[int], int, str]]] = {}
        for length, row in zip(lengths, rows, strict=True):
            self.groups.setdefault((len(row[0]), length), []).append(row)
        sizes = np.array([len(group) for group in self.groups.values()], dtype=np.float64)
        self.keys, self.shares = list(self.groups), sizes / sizes.sum()

    def __len__(self) -> int:
        return STEPS_WITHOUT_END // 100

    def __getitem__(self, index: int) -> dict[str, object]:
        rng = np.random.default_rng((self.seed, index))
        if rng.random() < FROM_TEXT:
            return {**self.from_text[index], "edit_chat": rng.random() < 0.5}
        group = self.groups[self.keys[rng.choice(len(self.keys), p=self.shares)]]
        chosen = [group[i] for i in rng.integers(len(group), size=BATCH)]
        prompts = [BLANK] * BATCH if rng.random() < NO_INSTRUCTION else [text for *_, text in chosen]
        sources = torch.tensor([each for each, *_ in chosen])
        return {
            "prompt": prompts,
            "input_latents": self.latents[[target for _, target, _ in chosen]].float(),
            "sources": self.latents[sources].float(),
            "seen": self.seen[sources],
            "timestep_bins": torch.from_numpy((np.arange(BATCH) + rng.random(BATCH)) / BATCH),
        }


class EditTraining(JointTraining):
    """Trains the denoiser and the text encoder, with its vision tower, on edits and on pictures from text."""

    pipeline = QwenImageEditPipeline

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.chat = PromptWithImagesEmbedder()
        ids = self.pipe.tokenizer(EDIT_PREFIX, return_tensors="pt").input_ids
        self.register_buffer("edit_prefix", ids, persistent=False)

    def forward(self, data: dict) -> Tensor:
        """Return the loss of a batch; its timesteps are spread evenly over the schedule's levels."""
        if "sources" not in data:
            return super().forward(data)
        x0, sources = data["input_latents"], data["sources"]
        levels = self.pipe.scheduler.timesteps
        return FlowMatchSFTLoss(
            self.pipe,
            input_latents=x0,
            noise=torch.randn_like(x0),
            timestep=levels[(data["timestep_bins"] * len(levels)).long()],
            prompt_embeds=self.encode_edits(data["prompt"], data["seen"]),
            edit_latents=torch.cat([pack(each) for each in sources.unbind(1)], dim=1),
            edit_sizes=(tuple(x0.shape[-2:]),) * sources.shape[1],
        )

    def prefix_of(self, data: dict) -> Tensor:
        """Return the tokens in front of a prompt for a picture from text: of either model's template."""
        return self.edit_prefix if data["edit_chat"] else self.prefix

    def encode_edits(self, prompts: list[str], seen: Tensor) -> Tensor:
        """Return what the pipeline's own unit does for instructions of one length: hidden states (B, T, D).

        `seen` are the pictures (B, n, H, W, 3) uint8 as the vision tower gets them. The template's first 64 tokens are
        run once for all.
        """
        model, start = self.pipe.text_encoder.model, self.edit_prefix.shape[1]
        grid, patches = patches_of(seen.flatten(0, 1))
        count = int(grid[0].prod()) // MERGED**2
        texts = [self.chat.chat(prompt, [count] * seen.shape[1])[len(EDIT_PREFIX) :] for prompt in prompts]
        ids = self.pipe.tokenizer(texts, return_tensors="pt").input_ids
        is_picture = ids == self.pipe.text_encoder.config.image_token_id
        words = model.get_input_embeddings()(ids)
        pictures = torch.cat(model.get_image_features(patches, grid).pooler_output).to(words.dtype)
        embeds = words.masked_scatter(is_picture.unsqueeze(-1), pictures)
        whole = torch.cat([self.edit_prefix, ids[:1]], dim=1)  # all rows have the same positions
        types = (whole == self.pipe.text_encoder.config.image_token_id).int()
        places = model.get_rope_index(whole, types, grid[: seen.shape[1]])[0]
        past = model(input_ids=self.edit_prefix, use_cache=True).past_key_values
        past.batch_repeat_interleave(len(prompts))
        return model.language_model(
            inputs_embeds=embeds,
            past_key_values=past,
            position_ids=places[:, :, start:].expand(-1, len(prompts), -1),
            use_cache=True,
        ).last_hidden_state


def patches_of(pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Return what the processor makes of pictures (P, H, W, 3) uint8 of the vision tower's size.

    The first result is the numbers of patches (P, 3), in time, height and width; the second is the patches
    (P * patches, 3 * 2 * 14 * 14), those of one token together, in time twice the same.
    """
    count, height, width, _ = pictures.shape
    x = (pictures.permute(0, 3, 1, 2).float() / 255.0 - MEAN) / STD
    rows, columns = height // PATCH, width // PATCH
    x = x.view(count, 3, rows // MERGED, MERGED, PATCH, columns // MERGED, MERGED, PATCH)
    x = x.permute(0, 2, 5, 3, 6, 1, 4, 7).unsqueeze(6).expand(-1, -1, -1, -1, -1, -1, 2, -1, -1)
    return torch.tensor([[1, rows, columns]] * count), x.reshape(count * rows * columns, -1)


# transformers, OPENAI_CLIP_MEAN and OPENAI_CLIP_STD: how the processor normalizes pictures
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)


def train_edits(
    folder: Path, edits: Path, latents: Path, output: Path, minutes: float, save_minutes: float, precision: str
) -> Path:
    """Train the networks in `folder` on cached edits and scenes; return the folder of the averaged model."""

    def build() -> tuple[JointTraining, Dataset]:
        module = EditTraining(folder)
        return module, MixedBatches(edits, latents, module.pipe.tokenizer)

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    recipe = replace(RECIPE, precision=precision, product_dtype=dtype)
    return run(build, recipe, folder, output, minutes, save_minutes)


def main() -> None:
    """Run from the command line."""
    parser = command_line(__doc__, minutes=55.0, save_minutes=5.0, threads=1)
    parser.add_argument("--edits", type=Path, required=True)
    parser.add_argument("--precision", choices=("bf16", "no"), default="bf16", help="bf16 where the CPU multiplies it")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    train_edits(
        options.folder,
        options.edits,
        options.latents,
        options.output,
        options.minutes,
        options.save_minutes,
        options.precision,
    )


if __name__ == "__main__":
    main()
