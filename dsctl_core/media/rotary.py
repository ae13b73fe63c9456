"""Compute rotary embeddings (Su et al. 2021, arXiv:2104.09864) in real numbers, which compilers can fuse.

diffusers multiplies complex numbers for some models. Torch's compiler generates no code for these: each product takes
four kernels of its own, with all heads of queries and keys in float32 in memory between them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def rotated(tokens: Tensor, turns: Tensor) -> Tensor:
    """Return queries or keys (B, S, H, D), turned by `turns`, complex (S, D/2) or (B, S, D/2), in their dtype.

    It is computed in float32, and is what the product of complex numbers is.
    """
    cos, sin = torch.view_as_real(turns).unsqueeze(-3).unbind(-1)
    real, imaginary = tokens.float().unflatten(-1, (-1, 2)).unbind(-1)
    pairs = torch.stack([real * cos - imaginary * sin, real * sin + imaginary * cos], dim=-1)
    return pairs.flatten(-2).type_as(tokens)


class RealRotary:
    """Base class of attention processors that act like those of the model, with the rotary embedding of `rotated`.

    The class of a family derives from this one and from diffusers' processor.
    """

    def __init__(self, plain: Any) -> None:
        super().__init__()
        self._attention_backend, self._parallel_config = plain._attention_backend, plain._parallel_config


def use_real_rotary(model: nn.Module, plain: type, made: type[RealRotary]) -> int:
    """Replace the attention processors of the class `plain` in `model`, and return their number."""
    found = [module for module in model.modules() if type(getattr(module, "processor", None)) is plain]
    for module in found:
        module.set_processor(made(module.processor))  # type: ignore[operator]
    return len(found)
