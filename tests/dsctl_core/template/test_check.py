"""`dsctl template check` reports what the template does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dsctl_core.checkpoint.model_config import ModelConfig
from dsctl_core.errors import DsctlError
from dsctl_core.template.check import describe
from dsctl_core.template.model import Template, load_template
from dsctl_core.template.trust import Trust
from tests.templates import BRIGHTNESS, ENCODER, LORA, WORDS

Write = Callable[..., Path]


def opened(folder: Path) -> Template:
    return load_template(ModelConfig(path=folder), Trust(granted=True))


def test_a_number_to_keys_and_values(template: Write, pipe: Any) -> None:
    found = opened(template())
    facts = describe(found, pipe, {"scale": 0.5})
    assert facts["inputs"] == {"scale": "required"}
    assert facts["process_inputs"] == {"value": "(1,) float32"}
    names = [f"kv_cache.double_{block}[{side}]" for block in (0, 1) for side in (0, 1)]
    assert facts["forward"] == dict.fromkeys(names, "(1, 3, 2, 16) float32")
    assert facts["parameters"] == sum(each.numel() for each in found.model.parameters())
    assert facts["parts"]["keys"] + facts["parts"]["values"] == facts["parameters"]
    assert facts["no_gradient"] == []
    assert facts["changes_the_picture"] is True
    assert not any(each.requires_grad for each in found.model.parameters())


def test_what_gets_no_gradient_is_named(template: Write, pipe: Any) -> None:
    facts = describe(opened(template(ENCODER)), pipe, {"colour": [0.1, 0.2, 0.3, 0.4]})
    assert facts["gradient"] == ["mlp.weight", "mlp.bias"]
    assert facts["no_gradient"] == ["encoder.weight", "encoder.bias"]


@pytest.mark.parametrize(("code", "name"), [(LORA, "lora."), (WORDS, "prompt_embeds")])
def test_other_outputs_are_described_too(template: Write, pipe: Any, code: str, name: str) -> None:
    facts = describe(opened(template(code)), pipe, {})
    assert all(each.startswith(name) for each in facts["forward"])
    assert facts["changes_the_picture"] is True


def test_a_cache_without_tokens_changes_no_picture(template: Write, pipe: Any) -> None:
    code = ENCODER.replace('{"double_0": (k0, v0), "double_1": (v0, k0)}', '{"double_0": (k0[:, :0], v0[:, :0])}')
    assert code != ENCODER
    facts = describe(opened(template(code)), pipe, {"colour": [0.1, 0.2, 0.3, 0.4]})
    assert facts["changes_the_picture"] is False


WRONG = {
    "an input is missing": ("", "", {}, "needs the input 'scale'"),
    "a block that is not there": ("double_{i}", "triple_{i}", {"scale": 1.0}, "'triple_0', which this model does not"),
    "other heads": ("heads=2, width=16", "heads=3, width=16", {"scale": 1.0}, "takes"),
    "nothing": ('return {"kv_cache": {', 'return {} and {"kv_cache": {', {"scale": 1.0}, "forward returns nothing"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_the_model_would_refuse_is_refused(template: Write, pipe: Any, kind: str) -> None:
    old, new, inputs, said = WRONG[kind]
    assert old in BRIGHTNESS
    with pytest.raises(DsctlError, match=said):
        describe(opened(template(BRIGHTNESS.replace(old, new))), pipe, inputs)
    assert torch.is_grad_enabled()
