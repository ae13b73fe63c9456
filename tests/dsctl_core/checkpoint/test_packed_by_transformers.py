"""Text encoders that transformers has saved with bitsandbytes: the same hidden states as transformers computes.

The folders and the states are written by tests/packed/write.py, since bitsandbytes is not among the packages of the
tests; where it is installed, the layers are made whole by it, and else by what its papers say.
"""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dsctl_core.checkpoint.load import load_component
from dsctl_core.errors import DsctlError
from dsctl_core.families import load_family
from dsctl_core.memory.quantize import QuantizedLinear
from tests import nf4
from tests.conftest import REPOSITORY

PACKED = REPOSITORY / "tests" / "packed"
# The folder: the family and the component, the precision, the number of packed layers, and one of those that are not.
FOLDERS: dict[str, tuple[str, str, torch.dtype, int, str]] = {
    "qwen2_5_vl_nf4_twice": ("qwen-image", "text_encoder", torch.float32, 21, "lm_head"),
    "qwen3_nf4": ("z-image", "text_encoder", torch.bfloat16, 14, "lm_head"),
    "t5_fp4": ("flux1", "text_encoder_2", torch.float32, 12, "encoder.block.0.layer.1.DenseReluDense.wo"),
    "clip_int8": ("flux1", "text_encoder", torch.float32, 12, ""),
}


@pytest.fixture(autouse=True)
def _bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("bitsandbytes") is None:
        monkeypatch.setattr("dsctl_core.memory.quantize.bitsandbytes", lambda: nf4)


def load(name: str, folder: Path | None = None, dtype: torch.dtype | None = None) -> Any:
    family, component, own, *_ = FOLDERS[name]
    found = load_family(family).component(component)
    return load_component(found, folder or PACKED / name, dtype or own)


def states_of(model: Any, ids: Tensor) -> Tensor:
    inputs = {"input_ids": ids}
    return torch.stack(model(**inputs, output_hidden_states=True).hidden_states)


@pytest.mark.parametrize("name", FOLDERS)
def test_the_hidden_states_are_to_the_bit_what_transformers_computes(name: str) -> None:
    expected, model = load_file(PACKED / f"{name}.safetensors"), load(name)
    layers = {each: layer for each, layer in model.named_modules() if isinstance(layer, QuantizedLinear)}
    *_, count, whole = FOLDERS[name]
    assert len(layers) == count and whole not in layers
    assert not any(each.is_meta for each in (*model.parameters(), *model.buffers()))
    assert torch.equal(states_of(model, expected["ids"]), expected["states"])


@pytest.fixture
def copy(tmp_path: Path) -> Any:
    """Return a function that copies a folder, with the tensors of its file changed."""

    def made(name: str, how: Any) -> Path:
        folder = Path(shutil.copytree(PACKED / name, tmp_path / name))
        save_file(how(load_file(folder / "model.safetensors")), folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return made


def test_packed_bytes_may_be_stored_as_numbers_of_another_dtype(copy: Any) -> None:
    """So they are where FSDP is to divide them: bnb_4bit_quant_storage."""
    name = "qwen2_5_vl_nf4_twice"

    def stored(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        packed = [each.rpartition(".absmax")[0] for each in tensors if each.endswith(".absmax")]
        assert len(packed) > 10
        return {**tensors, **{each: tensors[each].view(1, -1).view(torch.bfloat16).view(-1, 1) for each in packed}}

    expected = load_file(PACKED / f"{name}.safetensors")
    assert torch.equal(states_of(load(name, copy(name, stored)), expected["ids"]), expected["states"])


def test_text_is_generated_as_the_folder_says(copy: Any) -> None:
    folder = copy("qwen2_5_vl_nf4_twice", lambda tensors: tensors)
    (folder / "generation_config.json").write_text('{"do_sample": true, "temperature": 0.25}')
    found = load("qwen2_5_vl_nf4_twice", folder).generation_config
    assert (found.do_sample, found.temperature) == (True, 0.25)


def test_names_of_earlier_versions_are_found_and_what_is_lacking_is_named(copy: Any) -> None:
    """Transformers has put the text model below `language_model` since, and ties the embedding to the head."""
    name = "qwen2_5_vl_nf4_twice"
    assert "model.layers.0.self_attn.q_proj.weight" in load_file(PACKED / name / "model.safetensors")
    lacking = "model.layers.1.mlp.up_proj.weight"
    with pytest.raises(DsctlError, match=f"what belongs to {lacking} is missing"):
        load(name, copy(name, lambda tensors: {each: t for each, t in tensors.items() if each != lacking}))


def test_a_layer_that_its_class_needs_in_the_precision_of_its_inputs_is_refused(copy: Any) -> None:
    name = "t5_fp4"

    def swapped(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Have the output of a block packed in place of one of its inputs."""
        one, other = (f"encoder.block.0.layer.1.DenseReluDense.{each}" for each in ("wi_0", "wo"))
        found = {f"\0{key.removeprefix(one)}" if key.startswith(one) else key: each for key, each in tensors.items()}
        found = {key.replace(other, one): each for key, each in found.items()}
        return {key.replace("\0", other): each for key, each in found.items()}

    with pytest.raises(DsctlError, match="wo packed, of which a T5EncoderModel needs the precision"):
        load(name, copy(name, swapped))
