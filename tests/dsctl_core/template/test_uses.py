"""The components that a template's code uses are those that are loaded for it."""

from __future__ import annotations

import pytest
import torch

from dsctl_core.template.used_parameters import parameters_used
from dsctl_core.template.uses import components_used

NAMES = ("dit", "vae", "text_encoder")
CODE = """
class Model(Module):
    def process_inputs(self, pipe, **kwargs):
        {first}

    def forward(self, pipe, **kwargs):
        {second}

def helper(pipe):
    {elsewhere}

class Other:
    def forward(self, pipe):
        {other}
"""


@pytest.mark.parametrize(
    ("where", "text", "first", "second"),
    [
        ("first", "pipe.text_encoder(1)", ("text_encoder",), ()),
        ("second", "pipe.text_encoder(1)", (), ("text_encoder",)),
        ("elsewhere", "pipe.vae.encode(1)", ("vae",), ("vae",)),
        ("other", "pipe.vae.encode(1)", ("vae",), ("vae",)),
        ("first", "pipe.load_models_to_device(['vae'])", ("vae",), ()),
        ("first", "pipe.torch_dtype, pipe.device, 'a vae'", (), ()),
        ("first", "(lambda p: [p.dit for _ in range(3)])(pipe)", ("dit",), ()),
    ],
)
def test_a_component_is_needed_where_it_is_named(
    where: str, text: str, first: tuple[str, ...], second: tuple[str, ...]
) -> None:
    holes = dict.fromkeys(("first", "second", "elsewhere", "other"), "pass")
    assert components_used(CODE.format(**{**holes, where: text}), NAMES, "Model") == (first, second)


def test_parameters_that_are_computed_with_are_seen() -> None:
    layer, other = torch.nn.Linear(2, 3), torch.nn.Linear(2, 3)
    watched = {
        f"{name}.{part}": p for name, m in (("layer", layer), ("other", other)) for part, p in m.named_parameters()
    }
    with parameters_used(watched) as used:
        layer(torch.ones(1, 2))
        assert other.weight.dtype is torch.float32
        assert other.weight.device.type == "cpu"
        assert other.weight.shape == (3, 2)
    assert used == {"layer.weight", "layer.bias"}
    with parameters_used(watched) as used:
        torch.stack([other.bias, other.bias])
    assert used == {"other.bias"}
    with parameters_used({}) as used:
        other(torch.ones(1, 2))
    assert used == set()
