"""Attention backends: those without true gradients are refused, and none is chosen silently."""

import pytest
import torch
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.memory import attention
from dsctl_core.memory.attention import abilities, check_backward, set_attention_backend

CPU = torch.device("cpu")


def native(query, key, value):
    return scaled_dot_product_attention(*(x.transpose(1, 2) for x in (query, key, value))).transpose(1, 2)


class WrongBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value):
        return native(query, key, value)

    @staticmethod
    def backward(ctx, grad):
        return grad, grad, grad


@pytest.mark.parametrize(
    ("attend", "problem"),
    [
        (lambda q, k, v: native(q, k, v).detach(), "gives no gradients"),
        (lambda q, k, v: native(q.detach(), k, v), "gives no gradients"),
        (WrongBackward.apply, "gives wrong gradients"),
        (lambda q, k, v: native(q, k, v) * float("nan"), "gives wrong gradients"),
    ],
)
def test_a_backend_without_true_gradients_is_refused(attend, problem):
    check_backward("fine", native, CPU)
    with pytest.raises(UsageError, match=problem):
        check_backward("other", attend, CPU)


@pytest.mark.parametrize("name", [each.value for each in AttentionBackendName if "sage" in each.value])
def test_every_sage_backend_is_refused_for_training(name):
    with pytest.raises(UsageError, match="no backward pass"):
        set_attention_backend([nn.Linear(1, 1)], name, CPU)


def test_a_backend_set_in_the_environment_is_looked_at_as_well(monkeypatch):
    monkeypatch.setattr(_AttentionBackendRegistry, "_active_backend", AttentionBackendName.SAGE)
    with pytest.raises(UsageError, match="sage has no backward pass"):
        set_attention_backend([nn.Linear(1, 1)], None, CPU)


def test_an_unknown_backend_is_a_usage_error_with_the_near_miss():
    with pytest.raises(UsageError, match="unknown attention backend 'nativ'") as caught:
        set_attention_backend([nn.Linear(1, 1)], "nativ", CPU)
    assert "native" in caught.value.hint


def test_a_backend_that_is_not_installed_is_an_error():
    with pytest.raises(DsctlError, match="xformers cannot be used here"):
        set_attention_backend([nn.Linear(1, 1)], "xformers", CPU)


def test_the_default_is_torchs_own_and_a_choice_is_the_models_alone(load_tiny_dit):
    dit = load_tiny_dit()
    assert set_attention_backend([dit], None, CPU) == "native"
    assert {block.attn.processor._attention_backend for block in dit.transformer_blocks} == {None}
    assert set_attention_backend([dit], "_native_math", CPU) == "_native_math"
    chosen = {block.attn.processor._attention_backend for block in dit.transformer_blocks}
    assert chosen == {AttentionBackendName._NATIVE_MATH}
    assert _AttentionBackendRegistry.get_active_backend()[0] == AttentionBackendName.NATIVE


def test_what_a_backend_can_do_is_found_out_by_trying_it(monkeypatch):
    from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

    def without_gradients(query, key, value, attn_mask=None):
        if attn_mask is not None:
            raise ValueError("no masks")
        return native(query, key, value).detach()

    for table, entry in (("_backends", without_gradients), ("_constraints", []), ("_supported_arg_names", None)):
        entry = {"query", "key", "value", "attn_mask"} if entry is None else entry
        monkeypatch.setitem(getattr(_AttentionBackendRegistry, table), AttentionBackendName.FLEX, entry)
    monkeypatch.setattr(attention, "OFFERED", {"native": "torch", "flex": "ours", "_flash_3": "FlashAttention 3"})
    found = abilities(torch.device("cpu"))
    assert found["native"].startswith("torch: trains, takes masks")
    assert found["flex"].startswith("ours: no gradients, so refused in training, no masks")
    assert "not usable here" in found["_flash_3"] and "\n" not in found["_flash_3"]
