"""A stand-in for `bitsandbytes.functional` in plain torch: fp4, and nf4 by its paper (arXiv:2305.14314, appendix E).

The package itself is not among those of the tests, because peft imports it at every start where it is installed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

CODE = torch.tensor(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
        *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
        *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ]
)
# A bit for the sign, two for the exponent, one for the mantissa; divided by the largest.
FP4 = torch.tensor([sign * number / 12 for sign in (1, -1) for number in (0, 0.0625, 8, 12, 4, 6, 2, 3)])


@dataclass
class QuantState:
    """What makes a packed weight whole again."""

    absmax: Tensor
    shape: torch.Size
    code: Tensor
    blocksize: int
    quant_type: str
    dtype: torch.dtype


def quantize_4bit(weight: Tensor, *, blocksize: int, quant_type: str) -> tuple[Tensor, QuantState]:
    """Return the weight packed, two numbers to a byte, and its state."""
    blocks = weight.float().reshape(-1, blocksize)
    absmax, code = blocks.abs().amax(1), CODE if quant_type == "nf4" else FP4
    places = (blocks / absmax[:, None]).flatten()[:, None].sub(code).abs().argmin(1).to(torch.uint8)
    packed = (places[::2] << 4 | places[1::2]).unsqueeze(1)
    return packed, QuantState(absmax, weight.shape, code, blocksize, quant_type, weight.dtype)


def dequantize_4bit(packed: Tensor, state: QuantState) -> Tensor:
    """Return the weight in the shape and dtype of its state."""
    places = torch.cat([packed >> 4, packed & 15], dim=1).flatten().long()
    blocks = state.code[places].reshape(-1, state.blocksize) * state.absmax[:, None]
    return blocks.reshape(state.shape).to(state.dtype)
