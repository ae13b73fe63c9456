"""Tensors that cannot be a LoRA are refused by name: rank 0, an alpha of several numbers, whole numbers, NaN."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from dsctl_core.errors import DsctlError
from dsctl_core.lora.files import read_lora
from dsctl_core.lora.peft_config import ADAPTER_CONFIG, ADAPTER_FILE

GOOD = {"q.lora_A.weight": torch.ones(2, 4), "q.lora_B.weight": torch.ones(3, 2), "q.alpha": torch.tensor(1.0)}
BAD = [
    ({"q.lora_A.weight": torch.ones(0, 4), "q.lora_B.weight": torch.ones(3, 0)}, r"q\.lora_A\.weight is empty"),
    ({"q.alpha": torch.ones(2)}, r"q\.alpha has the shape \(2,\), not one number"),
    ({"q.alpha": torch.tensor(float("nan"))}, r"q\.alpha has a value that is no finite number"),
    ({"q.lora_B.weight": torch.ones(3, 2, dtype=torch.int64)}, r"q\.lora_B\.weight is int64"),
    ({"q.lora_A.weight": torch.ones(2, 4, dtype=torch.bool)}, r"q\.lora_A\.weight is bool"),
    ({"q.lora_B.weight": torch.tensor([[1, float("inf")]] * 3)}, r"q\.lora_B\.weight has a value that is no finite"),
    ({"q.lora_B.weight": torch.full((3, 2), float("nan")).bfloat16()}, "no finite number"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=[message[:30] for _, message in BAD])
def test_a_tensor_that_cannot_be_of_a_lora_is_named(tmp_path, change, message):
    save_file(GOOD, tmp_path / "l.safetensors")
    assert read_lora(tmp_path / "l.safetensors").components["dit"]["q"].rank == 2
    save_file({**GOOD, **change}, tmp_path / "l.safetensors")
    with pytest.raises(DsctlError, match=message) as caught:
        read_lora(tmp_path / "l.safetensors")
    assert str(tmp_path / "l.safetensors") in caught.value.problem


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ('{"lora_alpha": [1, 2]}', "lora_alpha is a list, not a number"),
        ('{"lora_alpha": 1e400}', "lora_alpha is inf, not a finite number"),
        ('{"alpha_pattern": {"q": "x"}}', r"alpha_pattern\.q is the text 'x', not a number"),
        ('{"alpha_pattern": {"(": 1}}', r"alpha_pattern has '\(', which is no regular expression"),
        ('{"use_dora": "no"}', "use_dora is the text 'no', not true or false"),
        ("[" * 100_000, "is nested more than 64"),
    ],
)
@pytest.mark.parametrize("in_header", [False, True])
def test_settings_of_another_type_are_named(tmp_path, settings, message, in_header):
    save_file(GOOD, tmp_path / ADAPTER_FILE, metadata={"lora_adapter_metadata": settings} if in_header else {})
    if not in_header:
        (tmp_path / ADAPTER_CONFIG).write_text(settings)
    with pytest.raises(DsctlError, match=message):
        read_lora(tmp_path / ADAPTER_FILE)


def test_null_settings_are_as_if_they_were_absent(tmp_path):
    save_file({name: GOOD[name] for name in GOOD if "lora" in name}, tmp_path / ADAPTER_FILE)
    (tmp_path / ADAPTER_CONFIG).write_text(json.dumps({"lora_alpha": None, "alpha_pattern": None, "use_dora": None}))
    assert read_lora(tmp_path).components["dit"]["q"].scale == 1
