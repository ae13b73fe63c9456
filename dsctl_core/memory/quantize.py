"""Hold frozen weights in 4 or 8 bits, and compute with them in the precision of the run.

A weight is made whole again when its layer runs, and once more in the backward pass: memory falls with and without
gradient checkpointing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dsctl_core.errors import UsageError
from dsctl_core.memory.blocks import repeated_blocks
from dsctl_core.memory.dtypes import float32_parts
from dsctl_core.memory.frozen_linear import FrozenLinear

# An output head can share its weight with the embedding.
SKIPPED = ("norm", "pos_embed", "embed_tokens", "lm_head", "lora_")
FP8 = torch.float8_e4m3fn
BLOCK = 64  # numbers that share a scale in nf4, as in QLoRA (Dettmers et al. 2023, arXiv:2305.14314)

Packed = tuple[Tensor, dict[str, Tensor]]  # what a weight is held as, and the tensors that go with it, by name
# Makes a matrix whole again: what is held, by name; its shape (out, in); the dtype that it is to have.
Unpack = Callable[[Mapping[str, Tensor], torch.Size, torch.dtype], Tensor]


@dataclass(frozen=True)
class Format:
    """A way to hold a matrix (out, in): to pack it, and to make it whole again in a dtype."""

    pack: Callable[[Tensor], Packed]
    unpack: Unpack


class QuantizedLinear(FrozenLinear):
    """A frozen linear layer that holds `weight` packed."""

    unpack: Unpack
    computes_in: torch.dtype
    beside: tuple[str, ...]  # names of the buffers that go with the packed weight

    def held(self) -> dict[str, Tensor]:
        """Return the packed weight and the tensors that go with it, by name."""
        return {"weight": self.weight, **{name: getattr(self, name) for name in self.beside}}

    def whole_weight(self, like: Tensor) -> Tensor:
        """Return the weight (out, in) in the dtype of the computation."""
        return self.unpacked(self.held())

    def unpacked(self, held: Mapping[str, Tensor]) -> Tensor:
        """Return the weight (out, in) that `held` is, in the dtype of the computation."""
        return self.unpack(held, torch.Size((self.out_features, self.in_features)), self.computes_in)

    def whole_bias(self, weight: Tensor) -> Tensor | None:
        """Return the bias in the dtype of `weight`."""
        return None if self.bias is None else self.bias.to(weight.dtype)


def _pack_cast(weight: Tensor) -> Packed:
    return weight.to(FP8), {}


def _unpack_cast(held: Mapping[str, Tensor], shape: torch.Size, dtype: torch.dtype) -> Tensor:
    return held["weight"].to(dtype)


def _scaled(largest: float, dtype: torch.dtype) -> Callable[[Tensor], Packed]:
    """Return a function that packs each row by its own scale, which brings the largest number to `largest`."""

    def pack(weight: Tensor) -> Packed:
        wide = weight.float()
        scale = (wide.abs().amax(dim=1, keepdim=True) / largest).clamp_min(torch.finfo(torch.float32).tiny)
        wide = wide / scale
        return (wide if dtype.is_floating_point else wide.round()).clamp(-largest, largest).to(dtype), {"scale": scale}

    return pack


def _unpack_scaled(held: Mapping[str, Tensor], shape: torch.Size, dtype: torch.dtype) -> Tensor:
    return (held["weight"].float() * held["scale"]).to(dtype)


def bitsandbytes() -> Any:
    """Return the functions of bitsandbytes, which is optional."""
    from bitsandbytes import functional

    return functional


def _is_fake(tensor: Tensor) -> bool:
    from torch._subclasses.fake_tensor import is_fake

    return is_fake(tensor)


def _four_bits(kind: str) -> Format:
    """Return bitsandbytes' format `kind`, nf4 or fp4: 4 bits a number, and a scale for each block."""

    def pack(weight: Tensor) -> Packed:
        if _is_fake(weight):  # a dry run needs the sizes, and not the library
            blocks = -(-weight.numel() // BLOCK)
            sizes = {"absmax": blocks, "code": 16}
            return weight.new_empty(-(-weight.numel() // 2), 1, dtype=torch.uint8), {
                name: weight.new_empty(size, dtype=torch.float32) for name, size in sizes.items()
            }
        packed, state = bitsandbytes().quantize_4bit(weight, blocksize=BLOCK, quant_type=kind)
        return packed, {"absmax": state.absmax, "code": state.code}

    def unpack(held: Mapping[str, Tensor], shape: torch.Size, dtype: torch.dtype) -> Tensor:
        weight = held["weight"]
        if _is_fake(weight):
            return weight.new_empty(shape, dtype=dtype)
        library = bitsandbytes()
        # As one row: on CPUs with AVX-512 bitsandbytes 0.50 goes wrong where a block reaches over the end of a row.
        row = torch.Size((shape.numel(),))
        about: dict[str, Any] = {"absmax": held["absmax"], "code": held["code"], "shape": row, "quant_type": kind}
        found: Tensor = library.dequantize_4bit(weight, library.QuantState(**about, blocksize=BLOCK, dtype=dtype))
        return found.view(shape)

    return Format(pack, unpack)


def _pack_llm_int8(weight: Tensor) -> Packed:
    largest = weight.float().abs().amax(dim=1)
    return (weight.float() * (127 / largest[:, None])).round().to(torch.int8), {"scb": largest}


def _unpack_llm_int8(held: Mapping[str, Tensor], shape: torch.Size, dtype: torch.dtype) -> Tensor:
    return (held["weight"] * held["scb"][:, None] * (1 / 127)).to(dtype)  # in bitsandbytes' order, to the bit


CAST = Format(_pack_cast, _unpack_cast)
FORMATS = {
    "int8": Format(_scaled(127, torch.int8), _unpack_scaled),
    "float8": Format(_scaled(torch.finfo(FP8).max, FP8), _unpack_scaled),
    "nf4": _four_bits("nf4"),
}
# What bitsandbytes has packed in files: LLM.int8 (arXiv:2208.07339) with the largest number of each row, `scb`.
BITSANDBYTES = {"nf4": FORMATS["nf4"], "fp4": _four_bits("fp4"), "LLM.int8": Format(_pack_llm_int8, _unpack_llm_int8)}


def quantize(
    model: nn.Module,
    form: str,
    compute_dtype: torch.dtype,
    device: torch.device,
    kept_on: torch.device | None = None,
) -> None:
    """Hold the weights of the linear layers in the repeated blocks of `model` in the format `form`, on `kept_on`.

    Each weight goes to `device` alone, and is packed there, where it stays unless `kept_on` is another device. Norms,
    embeddings, LoRA layers, and layers that the class of the model excludes or keeps in float32, stay as and where
    they are. Raises UsageError if there are no such layers.
    """
    if not _pack_blocks(model, FORMATS[form], compute_dtype, device, kept_on):
        raise UsageError(
            f"the {type(model).__name__} has no linear layers in repeated blocks, so {form} has no effect on it",
            hint="leave it out of --quantize",
        )


def store_in_fp8(
    model: nn.Module,
    compute_dtype: torch.dtype,
    device: torch.device | None = None,
    kept_on: torch.device | None = None,
) -> None:
    """Store the weights of large layers of `model` in float8_e4m3, and cast each to `compute_dtype` while it runs.

    Norms, embeddings, LoRA layers, and layers that the class of the model excludes or keeps in float32, keep their
    dtype. The stored weights must be frozen, because gradients cannot be applied to them. Those of repeated blocks go
    to `device` one at a time (None: they stay where they are), and are kept there unless `kept_on` is another device.
    """
    from diffusers.hooks import apply_layerwise_casting

    _pack_blocks(model, CAST, compute_dtype, device, kept_on)
    apply_layerwise_casting(
        model,
        storage_dtype=FP8,
        compute_dtype=compute_dtype,
        skip_modules_pattern=kept_parts(model),
        skip_modules_classes=(QuantizedLinear,),
    )


def kept_parts(model: nn.Module) -> tuple[str, ...]:
    """Return patterns of the names of what is held and computed in the precision of the run: norms, embeddings, LoRAs.

    What the class of `model` excludes or keeps in float32 is among them.
    """
    declared: Any = getattr(model, "_skip_layerwise_casting_patterns", None) or ()
    return (*SKIPPED, *declared, *(re.escape(name) for name in sorted(float32_parts(model))))


def _pack_blocks(
    model: nn.Module,
    form: Format,
    dtype: torch.dtype,
    device: torch.device | None,
    kept_on: torch.device | None = None,
) -> int:
    """Pack the linear layers of the repeated blocks of `model`; return their number."""
    layers = list(linear_layers_of_blocks(model))
    for _, layer in layers:
        _pack(layer, form, dtype, device, kept_on)
    return len(layers)


def linear_layers_of_blocks(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """Yield the linear layers in the repeated blocks of `model` that may be held or computed in few bits, by name."""
    kept = [re.compile(pattern) for pattern in kept_parts(model)]
    for prefix, block in repeated_blocks(model).items():
        for name, layer in block.named_modules():
            full = f"{prefix}.{name}" if name else prefix
            if type(layer) is nn.Linear and not any(pattern.search(full) for pattern in kept):
                yield full, layer


def _pack(
    layer: nn.Linear,
    form: Format,
    dtype: torch.dtype,
    device: torch.device | None,
    kept_on: torch.device | None = None,
) -> None:
    whole = layer.weight.detach()
    held, beside = form.pack(whole if device is None else whole.to(device))
    del whole
    if kept_on is not None:
        held, beside = held.to(kept_on), {name: tensor.to(kept_on) for name, tensor in beside.items()}
    if layer.bias is not None and form is CAST:
        layer.bias.data = layer.bias.data.to(FP8)
    hold_packed(layer, held, beside, form.unpack, dtype)


def hold_packed(
    layer: nn.Linear, held: Tensor, beside: Mapping[str, Tensor], unpack: Unpack, compute_dtype: torch.dtype
) -> None:
    """Have `layer` hold `held`, its weight in few bits that `unpack` makes whole, and compute in `compute_dtype`.

    `beside` are the tensors that go with it, by name.
    """
    layer.weight = nn.Parameter(held, requires_grad=False)
    for name, tensor in beside.items():
        layer.register_buffer(name, tensor, persistent=False)
    layer.__class__ = QuantizedLinear
    assert isinstance(layer, QuantizedLinear)
    layer.unpack, layer.computes_in, layer.beside = unpack, compute_dtype, tuple(beside)


def packable_numbers(model: nn.Module) -> int:
    """Return the number of weights of the linear layers in repeated blocks of `model`, packed or not."""
    layers = (each for block in repeated_blocks(model).values() for each in block.modules())
    return sum(each.in_features * each.out_features for each in layers if isinstance(each, nn.Linear))


def packed_numbers(model: nn.Module) -> int:
    """Return the number of weights of `model` that its packed parameters hold beyond the numbers that they have."""
    layers = [layer for layer in model.modules() if isinstance(layer, QuantizedLinear)]
    return sum(layer.out_features * layer.in_features - layer.weight.numel() for layer in layers)


def compute_dtype(model: nn.Module, weight: torch.Tensor) -> torch.dtype:
    """Return the dtype in which a diffusers model computes; `weight` is one of its large weights.

    This is the dtype of `weight`, which is faster than `model.dtype`, a walk over all modules. Of weights in few bits
    the layers know the dtype, or the hooks of the model, by which `model.dtype` is right.
    """
    if weight.dtype.itemsize > 1:
        return weight.dtype
    packed = (layer.computes_in for layer in model.modules() if isinstance(layer, QuantizedLinear))
    return next(packed, None) or model.dtype  # type: ignore[return-value]
