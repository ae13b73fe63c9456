"""Compiling the repeated blocks of a model, one at a time: what one block costs to compile serves all of them."""

from __future__ import annotations

import importlib.util
import os
import shutil

import torch
from torch import nn

from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.memory.blocks import repeated_blocks

COMPILERS = ("g++", "c++", "clang++", "cl")


def compile_blocks(model: nn.Module, device: torch.device, backend: str = "inductor") -> int:
    """Have every repeated block of `model` compiled when it first runs, and return how many there are.

    The results are the same up to rounding. Raises a DsctlError where there is no compiler to do it.
    """
    blocks = repeated_blocks(model)
    if not blocks:
        raise UsageError(f"the {type(model).__name__} has no repeated blocks to compile", hint="leave --compile out")
    if backend == "inductor":
        refuse_without_compiler(device)
    for block in blocks.values():
        block.compile(backend=backend)
    return len(blocks)


def refuse_without_compiler(device: torch.device) -> None:
    """Raise a DsctlError where what torch generates could not be compiled: said now, not after minutes of loading."""
    if device.type == "cuda":
        if importlib.util.find_spec("triton") is None:
            raise DsctlError("--compile needs triton, which is not installed", hint="pip install triton")
    elif not any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), *COMPILERS)):
        raise DsctlError("--compile needs a C++ compiler, and there is none", hint="install g++, or leave it out")
