"""A file of tensors is read in a dtype and on a device; a pickle is not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dsctl_core import DsctlError, load_state_dict


def test_floating_point_tensors_get_the_dtype_and_others_keep_theirs(tmp_path: Path) -> None:
    tensors = {"a": torch.rand(3), "n": torch.arange(3), "h": torch.rand(2).half()}
    save_file(tensors, tmp_path / "a.safetensors")
    as_stored = load_state_dict(tmp_path / "a.safetensors")
    assert {name: tensor.dtype for name, tensor in as_stored.items()} == {n: t.dtype for n, t in tensors.items()}
    cast = load_state_dict(str(tmp_path / "a.safetensors"), torch_dtype=torch.bfloat16, device="cpu")
    assert (cast["a"].dtype, cast["h"].dtype, cast["n"].dtype) == (torch.bfloat16, torch.bfloat16, torch.int64)
    assert torch.equal(cast["a"], tensors["a"].bfloat16())


def test_a_pickle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(b"PK")
    with pytest.raises(DsctlError, match="pickle"):
        load_state_dict(tmp_path / "a.pt")
