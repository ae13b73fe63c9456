"""What fewer kernels change in bf16: the loss by less than docs/performance.md says, the gradient not at all."""

import copy

import torch
from peft.tuners.lora.layer import Linear
from torch import nn
from torch.nn.functional import rms_norm

from dsctl_core.checkpoint.build import component_class
from dsctl_core.families import load_family
from dsctl_core.lora.layers import add_lora, tuner_layers
from dsctl_core.memory.fused import as_on_a_gpu, use_fused_norms
from dsctl_core.training.dry_run.gpu_rules import CudaAutocast
from tests.tiny_models import randomize

DOCUMENTED = 5e-4  # of the loss


class Rules(CudaAutocast):
    """What CUDA's autocast computes in float32; an RMS norm keeps its values, not only its sizes."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is rms_norm:
            return func(*args, **(kwargs or {}))
        return super().__torch_function__(func, types, args, kwargs)


def outcome(dit, seed, dtype):
    """Return the loss of a batch and the gradient of the LoRA, flat."""
    generator = torch.Generator().manual_seed(seed)
    x, target, prompt = (torch.randn(1, n, width, generator=generator) for n, width in ((64, 64), (64, 64), (7, 32)))
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype != torch.float32):
        velocity = dit(
            hidden_states=x.to(dtype),
            timestep=torch.tensor([0.5]),
            encoder_hidden_states=prompt.to(dtype),
            encoder_hidden_states_mask=None,
            img_shapes=[[(1, 8, 8)]],
            return_dict=False,
        )[0]
    loss = (velocity.float() - target).square().mean()
    gradients = torch.autograd.grad(loss, [each for each in dit.parameters() if each.requires_grad])
    return float(loss.detach()), torch.cat([each.float().flatten() for each in gradients])


def models(seed):
    """Return a denoiser with a LoRA in float32, in bf16 as peft and diffusers compute it, and in bf16 as on a GPU."""
    family = load_family("qwen-image")
    made = component_class(family.component("dit"))(**family.tiny["dit"])
    exact = randomize(made, torch.Generator().manual_seed(seed)).requires_grad_(False)
    add_lora(exact, ["to_q", "to_k", "to_v", "add_q_proj"], rank=2)
    for layer in tuner_layers(exact).values():
        nn.init.normal_(layer.lora_B["default"].weight, std=0.05, generator=torch.Generator().manual_seed(seed))
    fused = copy.deepcopy(exact)
    for parameter in fused.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()
    plain = copy.deepcopy(fused)
    for layer in tuner_layers(plain).values():
        layer.__class__ = Linear
    assert use_fused_norms(fused) > 4
    return exact, plain, fused


def test_the_loss_changes_by_less_than_is_documented_and_the_gradient_is_as_near_to_float32():
    changes, errors = [], []
    for seed in range(4):
        exact, plain, fused = models(seed)
        (_, right), before = outcome(exact, seed, torch.float32), None
        with Rules():
            before = outcome(plain, seed, torch.bfloat16)
            with as_on_a_gpu():
                after = outcome(fused, seed, torch.bfloat16)
        changes.append(abs(after[0] - before[0]) / before[0])
        errors.append([float((each[1] - right).norm() / right.norm()) for each in (before, after)])
    assert 0 < max(changes) < DOCUMENTED
    assert all(after < 1.1 * before < 0.05 for before, after in errors)
