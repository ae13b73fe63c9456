"""Select the attention backend, and check that it computes correct gradients.

Backends are diffusers': https://huggingface.co/docs/diffusers/optimization/attention_backends
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from dsctl_core.errors import DsctlError, UsageError, unknown_name

# What is offered beside diffusers' other names, and what each is.
OFFERED = {
    "native": "torch's own choice",
    "_native_cudnn": "cuDNN",
    "_native_flash": "FlashAttention 2, in torch",
    "_native_efficient": "memory-efficient, in torch",
    "flash": "FlashAttention 2, flash-attn",
    "_flash_3": "FlashAttention 3",
    "xformers": "xFormers",
    "sage": "SageAttention",
}
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]  # (query, key, value) -> output, each (B, T, heads, channels)
DEFAULT = "native"
UNUSABLE = (RuntimeError, ValueError, ImportError, NotImplementedError)  # of backends that do not run here
PROBE = (1, 32, 2, 64)
CLOSE = 0.1  # tolerance relative to the norm of the gradient: far above 16-bit rounding, far below a wrong gradient


def set_attention_backend(models: Sequence[nn.Module], name: str | None, device: torch.device) -> str:
    """Set the attention backend of `models` to `name` (None: the default of diffusers) and return its name.

    Backends other than torch's own are tested first. Raises UsageError for a backend with missing or wrong gradients,
    and DsctlError for one that is not installed or does not run on `device`.
    """
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry

    chosen = name or str(_AttentionBackendRegistry.get_active_backend()[0].value)
    check_backend(chosen)
    if chosen != DEFAULT:
        _install(models, chosen, device)
    return chosen


def check_backend(name: str) -> None:
    """Raise an error for a backend that diffusers does not know, or that is known to compute no gradients.

    This needs no model, so that a run can fail before it loads one.
    """
    from diffusers.models.attention_dispatch import AttentionBackendName

    known = [each.value for each in AttentionBackendName]
    if name not in known:
        raise unknown_name("attention backend", name, [each for each in known if not each.startswith("_")])
    refuse_untrainable(name)


def abilities(device: torch.device) -> dict[str, str]:
    """Return what each backend in `OFFERED` can do on `device`: found out by trying it, with and without a mask."""
    return {name: f"{what}: {_ability(name, device)}" for name, what in OFFERED.items()}


def _ability(name: str, device: torch.device) -> str:
    from diffusers import attention_backend
    from diffusers.models.attention_dispatch import dispatch_attention_fn

    def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        return dispatch_attention_fn(query, key, value, attn_mask=mask)

    def train() -> None:
        refuse_untrainable(name)
        check_backward(name, attend, device)

    inputs = [torch.ones(PROBE, device=device, dtype=_probe_dtype(device)) for _ in range(3)]
    mask = torch.ones(PROBE[0], 1, 1, PROBE[1], dtype=torch.bool, device=device)
    try:
        with attention_backend(name):
            attend(*inputs)
            gradients = _has(train)
            masks = _has(lambda: attend(inputs[0], inputs[1], inputs[2], mask))
    except UNUSABLE as error:
        return f"not usable here ({_first_line(error)})"
    trains = "trains" if gradients else "no gradients, so refused in training"
    return f"{trains}, {'takes' if masks else 'no'} masks (prompts of unequal length in a batch)"


def _has(ability: Callable[[], object]) -> bool:
    try:
        ability()
    except (*UNUSABLE, DsctlError):
        return False
    return True


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _probe_dtype(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def refuse_untrainable(name: str) -> None:
    """Raise an error for a backend that is known to compute no gradients."""
    if "sage" in name:
        raise UsageError(
            f"the attention backend {name} has no backward pass, so it cannot be trained with",
            hint="use it for inference; leave --attention-backend out for training",
        )


def _install(models: Sequence[nn.Module], name: str, device: torch.device) -> None:
    from diffusers import attention_backend
    from diffusers.models.attention_dispatch import dispatch_attention_fn

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return dispatch_attention_fn(query, key, value)

    try:
        # diffusers also makes the backend of a model the default of the process; leaving the context restores it.
        with attention_backend(name):
            check_backward(name, attend, device)
            for model in models:
                model.set_attention_backend(name)  # type: ignore[operator]
    except UNUSABLE as error:
        raise DsctlError(
            f"the attention backend {name} cannot be used here: {_first_line(error)}",
            hint="leave --attention-backend out for torch's own",
        ) from error


def check_backward(name: str, attend: Attention, device: torch.device) -> None:
    """Raise UsageError unless the gradients of `attend` equal those of torch's own attention within `CLOSE`."""
    generator = torch.Generator().manual_seed(0)
    dtype = _probe_dtype(device)
    drawn = [torch.randn(PROBE, generator=generator).to(device, dtype) for _ in range(4)]
    weight = drawn.pop()

    def gradients(function: Attention) -> list[Tensor | None]:
        inputs = [each.clone().requires_grad_() for each in drawn]
        result = function(*inputs)
        if not result.requires_grad:
            return [None] * len(inputs)
        return list(torch.autograd.grad((result * weight).sum(), inputs, allow_unused=True))

    def plain(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        # (B, T, heads, channels) here, (B, heads, T, channels) in torch.
        return scaled_dot_product_attention(
            query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
        ).transpose(1, 2)

    for ours, expected in zip(gradients(attend), gradients(plain), strict=True):
        assert expected is not None
        if ours is None:
            fault = "gives no gradients"
        elif not float((ours - expected).float().norm()) <= CLOSE * float(expected.float().norm()):
            fault = "gives wrong gradients"
        else:
            continue
        raise UsageError(
            f"the attention backend {name} {fault}, so it cannot be trained with",
            hint="leave --attention-backend out for torch's own",
        )
