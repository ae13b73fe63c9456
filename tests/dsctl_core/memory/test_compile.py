"""Compiled blocks compute what the others do, with a LoRA and with checkpointing."""

import shutil

import pytest
import torch
from torch import nn

from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.lora.layers import add_lora, tuner_layers
from dsctl_core.memory.compile import COMPILERS, compile_blocks, refuse_without_compiler
from dsctl_core.memory.fused import use_fused_norms
from dsctl_core.memory.recompute import gradient_checkpoint_forward

CPU = torch.device("cpu")
# The compiler looks at tensors, and uses modules, in ways that torch itself warns of.
pytestmark = pytest.mark.filterwarnings("ignore")
BACKENDS = ["aot_eager", *(["inductor"] if any(shutil.which(name) for name in COMPILERS) else [])]


def outcome(dit, recompute):
    if recompute:
        dit.enable_gradient_checkpointing(
            gradient_checkpointing_func=lambda block, *args: gradient_checkpoint_forward(block, True, False, *args)
        )
    generator = torch.Generator().manual_seed(9)
    velocity = dit(
        hidden_states=torch.randn(1, 6, 64, generator=generator),
        timestep=torch.tensor([0.5]),
        encoder_hidden_states=torch.randn(1, 3, 32, generator=generator),
        encoder_hidden_states_mask=None,
        img_shapes=[[(1, 2, 3)]],
        return_dict=False,
    )[0]
    velocity.square().sum().backward()
    return velocity.detach(), [p.grad for p in dit.parameters() if p.grad is not None]


def with_lora(dit):
    add_lora(dit, ["to_q", "to_out.0"], rank=2)
    for layer in tuner_layers(dit).values():
        nn.init.normal_(layer.lora_B["default"].weight, generator=torch.Generator().manual_seed(1))
    return dit


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_results_and_gradients_are_those_of_blocks_that_are_not_compiled(load_tiny_dit, backend, recompute):
    torch._dynamo.reset()
    outcomes = []
    for compiled in (False, True):
        dit = with_lora(load_tiny_dit()).train()
        if compiled:
            assert compile_blocks(dit, CPU, backend) == 2
        outcomes.append(outcome(dit, recompute))
    (plain, expected), (result, gradients) = outcomes
    torch.testing.assert_close(result, plain, atol=1e-5, rtol=1e-5)
    assert len(gradients) >= 4
    for ours, theirs in zip(gradients, expected, strict=True):
        assert float((ours - theirs).norm()) <= 1e-5 * max(1.0, float(theirs.norm()))


def test_without_a_compiler_or_blocks_it_is_refused(monkeypatch):
    with pytest.raises(UsageError, match="no repeated blocks"):
        compile_blocks(nn.Linear(1, 1), CPU)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(DsctlError, match=r"needs a C\+\+ compiler"):
        refuse_without_compiler(CPU)


@pytest.mark.filterwarnings("ignore")
def test_under_autocast_a_compiled_lora_is_one_that_is_not_compiled(load_tiny_dit):
    torch._dynamo.reset()
    outcomes = []
    for compiled in (False, True):
        dit = with_lora(load_tiny_dit())
        assert use_fused_norms(dit) > 4
        if compiled:
            compile_blocks(dit, CPU, "aot_eager")
        with torch.autocast("cpu", torch.bfloat16):
            outcomes.append(outcome(dit, False))
    (plain, expected), (result, gradients) = outcomes
    assert torch.equal(result, plain)
    assert all(map(torch.equal, gradients, expected)) and len(gradients) >= 4
