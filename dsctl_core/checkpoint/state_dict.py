"""Read the tensors of a safetensors file from Python, in a dtype and on a device."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dsctl_core.files.safetensors import read_safetensors

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def load_state_dict(
    path: str | Path, torch_dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """Return the tensors of the safetensors file `path` by name, on `device`.

    Floating-point tensors get `torch_dtype` (None: the dtype that they are stored in). Raises DsctlError for a pickle,
    and for a file that is missing or damaged.
    """
    tensors, _ = read_safetensors(Path(path))
    return {
        name: tensor.to(device, torch_dtype if tensor.is_floating_point() else None) for name, tensor in tensors.items()
    }
