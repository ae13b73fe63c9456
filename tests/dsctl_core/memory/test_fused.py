"""Norms in one kernel: the same function, nothing else on a CPU, and 16 bits stay 16 bits under autocast."""

import pytest
import torch
from diffusers.models.normalization import RMSNorm
from torch import nn

from dsctl_core.memory.fused import FusedLayerNorm, FusedRMSNorm, as_on_a_gpu, use_fused_norms

KINDS = [
    lambda: RMSNorm(16, eps=1e-6),
    lambda: nn.RMSNorm(16, eps=1e-6),
    lambda: nn.LayerNorm(16),
    lambda: nn.LayerNorm(16, elementwise_affine=False),
]


def outcome(norm, x):
    x = x.clone().requires_grad_()
    result = norm(x)
    weights = [p for p in norm.parameters() if p is not None]
    return [result.detach(), *torch.autograd.grad(result.float().square().sum(), [x, *weights])]


def pair(kind, dtype):
    generator = torch.Generator().manual_seed(0)
    norms = [nn.Sequential(kind()), nn.Sequential(kind())]
    for parameter, other in zip(norms[0].parameters(), norms[1].parameters(), strict=True):
        with torch.no_grad():
            other.copy_(parameter.normal_(generator=generator))
    assert use_fused_norms(norms[1]) == 1
    return [norm.to(dtype) for norm in norms], torch.randn(2, 5, 16, generator=generator).to(dtype)


@pytest.mark.parametrize("kind", KINDS)
def test_on_a_cpu_nothing_changes_to_the_bit(kind):
    (plain, fused), x = pair(kind, torch.float32)
    assert all(map(torch.equal, outcome(fused, x), outcome(plain, x)))


@pytest.mark.parametrize("kind", KINDS)
def test_on_a_gpu_it_is_the_same_function_with_the_same_gradients(kind):
    (plain, fused), x = pair(kind, torch.float32)
    with as_on_a_gpu():
        found = outcome(fused, x)
    torch.testing.assert_close(found, outcome(plain, x))


@pytest.mark.parametrize("kind", KINDS)
def test_in_16_bits_it_is_nearer_to_float32_than_the_operations_that_it_replaces(kind):
    (plain, fused), x = pair(kind, torch.bfloat16)
    with as_on_a_gpu(), torch.autocast("cpu", torch.bfloat16):
        result = fused(x)
    assert result.dtype == torch.bfloat16
    (exact, _), _ = pair(kind, torch.float32)
    with torch.no_grad():
        for parameter, other in zip(exact.parameters(), plain.parameters(), strict=True):
            parameter.copy_(other.float())
        error, before = ((each.float() - exact(x.float())).abs().max() for each in (result, plain(x)))
    assert 0 < float(error) <= float(before)


def test_weights_of_another_dtype_are_left_to_the_plain_norm():
    norm = nn.Sequential(RMSNorm(16, eps=1e-6), nn.LayerNorm(16))
    assert use_fused_norms(norm) == 2
    assert [type(each) for each in norm] == [FusedRMSNorm, FusedLayerNorm]
    x = torch.randn(3, 16).bfloat16()
    with as_on_a_gpu():
        assert norm[0](x).dtype == torch.float32, "the product with a float32 weight, as without"
