"""Measure the memory of a device, and what the program itself takes after using every library that a run uses."""

from __future__ import annotations

import psutil
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from dsctl_core.training.distributed.accelerator import peak_memory

WIDTH, TOKENS = 128, 64


def available_memory(device: torch.device) -> int:
    """Return the bytes of memory that `device` has in all: of the GPU, or the main memory for a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return psutil.virtual_memory().total


def warm_up(dtype: torch.dtype) -> int:
    """Train one small step with each kind of layer, and return the peak memory of the process in bytes.

    Importing is not enough: the code of a kernel, and what a library sets up for it, is in memory after its first use.
    """
    import accelerate
    import peft  # noqa: F401 - imported for its memory

    mix = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(approximate="tanh"), nn.Linear(4 * WIDTH, WIDTH))
    norm, embed = nn.LayerNorm(WIDTH), nn.Embedding(TOKENS, WIDTH)
    flat, deep = nn.Conv2d(4, 8, 3), nn.Conv3d(4, 8, 3)
    parameters = [p for module in (mix, norm, embed, flat, deep) for p in module.parameters()]
    optimizer = torch.optim.AdamW(parameters)
    with torch.random.fork_rng(devices=[]), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        hidden = norm(embed(torch.arange(TOKENS))[None])
        heads = hidden.view(1, TOKENS, 4, WIDTH // 4).transpose(1, 2)
        mixed = mix(scaled_dot_product_attention(heads, heads, heads).transpose(1, 2).reshape(1, TOKENS, WIDTH))
        pictures = flat(torch.randn(1, 4, 33, 33)).mean() + deep(torch.randn(1, 4, 5, 33, 33)).mean()
        loss = nn.functional.silu(mixed).square().mean() + pictures
    loss.backward()
    nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    accelerate.utils.send_to_device(loss.detach(), torch.device("cpu"))
    return peak_memory()
