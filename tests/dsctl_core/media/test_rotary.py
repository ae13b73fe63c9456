"""Rotary embeddings in real numbers: those of complex ones, without an operation on complex numbers when compiled."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func

from dsctl_core.checkpoint.build import component_class
from dsctl_core.families import load_family
from dsctl_core.memory.blocks import repeated_blocks
from dsctl_core.training.plan import module as plan_module
from tests.tiny_models import randomize

LENGTHS = (5, 3)  # tokens of the prompts of a batch


def qwen_inputs(dit: Any, draw: Callable[..., Tensor]) -> dict[str, Any]:
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    return {
        "hidden_states": draw(2, 6, dit.config.in_channels),
        "encoder_hidden_states": draw(2, 5, dit.config.joint_attention_dim),
        "encoder_hidden_states_mask": mask,
        "timestep": torch.tensor([0.5, 0.2]),
        "img_shapes": [[(1, 2, 3)]] * 2,
    }


def z_image_inputs(dit: Any, draw: Callable[..., Tensor]) -> dict[str, Any]:
    prompts = [draw(40 * number, dit.config.cap_feat_dim) for number in (1, 2)]
    return {"x": [draw(16, 1, 4, 6) for _ in prompts], "t": torch.tensor([0.5, 0.2]), "cap_feats": prompts}


FAMILIES: dict[str, Callable[[Any, Callable[..., Tensor]], dict[str, Any]]] = {
    "qwen-image": qwen_inputs,
    "z-image": z_image_inputs,
}


def tiny(name: str, real: bool) -> Any:
    """Return the tiny denoiser of a family, which turns in real or in complex numbers."""
    family = load_family(name)
    dit = component_class(family.component("dit"))(**family.tiny["dit"])
    randomize(dit, torch.Generator().manual_seed(0))
    if real:
        assert family.for_compiler is not None
        family.for_compiler(dit)
    return dit


def outcome(name: str, dit: nn.Module) -> list[Tensor]:
    """Return the output and the gradients of the denoiser for a batch with prompts of two lengths."""
    generator = torch.Generator().manual_seed(9)
    inputs = FAMILIES[name](dit, lambda *shape: torch.randn(*shape, generator=generator))
    result = dit(**inputs, return_dict=False)[0]
    result = torch.stack(result) if isinstance(result, list) else result
    result.square().sum().backward()
    return [result.detach(), *(each.grad for each in dit.parameters() if each.grad is not None)]


@pytest.mark.parametrize("name", FAMILIES)
def test_turns_in_real_numbers_are_those_in_complex_ones(name):
    plain, ours = (outcome(name, tiny(name, real)) for real in (False, True))
    assert len(plain) == len(ours) > 20
    for expected, found in zip(plain, ours, strict=True):
        assert float((found - expected).norm()) <= 1e-6 * float(expected.norm()) + 1e-12


def operations(name: str, real: bool) -> tuple[list[str], dict[str, int]]:
    """Return the operations on complex numbers in the graphs of compiled blocks, and the graph breaks."""
    found: list[str] = []

    def note(graph: Any, _: Any) -> Any:
        for node in graph.graph.nodes:
            value = node.meta.get("val")
            views = "view_as_real" in str(node.target)  # of what is given, which copies nothing
            if node.op == "call_function" and isinstance(value, Tensor) and value.is_complex() and not views:
                found.append(str(node.target))
        return make_boxed_func(graph.forward)

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    dit = tiny(name, real)
    for block in repeated_blocks(dit).values():
        block.compile(backend=aot_autograd(fw_compiler=note, bw_compiler=note))
    outcome(name, dit)
    return found, dict(torch._dynamo.utils.counters["graph_break"])


@pytest.mark.filterwarnings("ignore")  # of the compiler, which looks at tensors in ways torch warns of
@pytest.mark.parametrize("name", FAMILIES)
def test_a_compiled_block_has_no_operation_on_complex_numbers(name):
    before, _ = operations(name, real=False)
    after, breaks = operations(name, real=True)
    assert len(before) >= 8
    assert (after, breaks) == ([], {})


@pytest.mark.parametrize(("device", "compiled", "changed"), [("cuda", True, 1), ("cuda", False, 0), ("cpu", True, 0)])
def test_only_what_is_compiled_for_a_gpu_is_changed(monkeypatch, device, compiled, changed):
    changes = []
    family = SimpleNamespace(for_compiler=changes.append)
    plan_module.change_for_compiler(
        SimpleNamespace(denoiser_modules=lambda: ["the denoiser"]), family, torch.device(device), compiled=compiled
    )
    assert len(changes) == changed
