"""A stand-in for `bitsandbytes.functional` in plain torch: fp4, and nf4 by its paper (arXiv:2305.14314, appendix E).

The package itself is not among those of the tests, because peft imports it at every start where it is installed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

CODE = torch.tensor(
    [
        *(-1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0),
        *(0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0),
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
