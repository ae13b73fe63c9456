"""Count the floating-point operations of a training step of a two-stream transformer from its layers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

# Peak of dense bfloat16 with float32 accumulation, in 10^12 operations a second, from the makers' data sheets.
PEAK = {"H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "H200": 989, "B200": 2250, "A100": 312, "L40S": 362}

TEXT = re.compile(r"\.(add_[qkv]_proj|to_add_out|txt_mlp)\b|^txt_in$")
ONCE = re.compile(r"_mod\b|^time_text_embed\b|^norm_out\b")  # on the embedding of the timestep: once for each sample
LORA = re.compile(r"\.lora_([AB])\.")
PROJECTIONS = re.compile(r"\.(to_[qkv]|add_[qkv]_proj)\b")
UNUSED = re.compile(r"\.(to_add_out|txt_mlp)\b")  # of the last block: nothing is made of its text


@dataclass(frozen=True)
class Flops:
    """Operations of one step, a multiplication and an addition counting as two."""

    forward: int  # of the frozen layers, attention and LoRA
    backward: int  # what training the LoRA needs: no gradients of frozen weights
    recomputed: int  # forward of the blocks once more, where every block is checkpointed

    @property
    def model(self) -> int:
        """What the step needs, however it is computed: recomputing does not count."""
        return self.forward + self.backward


def step_flops(dit: Any, batch: int, image_tokens: int, text_tokens: int) -> Flops:
    """Return the operations of one step on `dit`, the official transformer with peft's LoRA on its q, k and v.

    A linear layer takes 2 * in * out a token forward, as many for the gradient of its input, and, where it is trained,
    as many for that of its weight. Attention over S tokens of width d takes 4 * S^2 * d forward, and twice that
    backward. Norms, activations and rotations are left out: they are below one percent.
    """
    from torch import nn

    first, last = "transformer_blocks.0.", f"transformer_blocks.{len(dit.transformer_blocks) - 1}."
    forward = backward = in_blocks = 0
    for name, module in dit.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        in_block = name.startswith("transformer_blocks.")
        tokens = 1 if ONCE.search(name) else text_tokens if TEXT.search(name) else image_tokens
        own = 2 * module.in_features * module.out_features * tokens * batch
        forward += own
        in_blocks += own if in_block else 0
        reads_data = name.startswith(first) and PROJECTIONS.search(name) is not None
        leads_on = (in_block or name == "proj_out") and not ONCE.search(name)
        lora = LORA.search(name)
        if lora is not None:
            backward += own if reads_data and lora[1] == "A" else 2 * own
        elif leads_on and not reads_data and not (name.startswith(last) and UNUSED.search(name)):
            backward += own
    attention = 4 * (image_tokens + text_tokens) ** 2 * dit.inner_dim * batch * len(dit.transformer_blocks)
    return Flops(forward + attention, backward + 2 * attention, in_blocks + attention)


def peak_flops(device_name: str) -> float | None:
    """Return the peak of a GPU in operations a second, None for one that is not in the table."""
    known = device_name.replace(" ", "").lower()
    found = [peak for name, peak in PEAK.items() if name.replace(" ", "").lower() in known]
    return found[0] * 1e12 if found else None
