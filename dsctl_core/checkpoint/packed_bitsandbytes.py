"""Read linear layers that bitsandbytes has packed: nf4 and fp4 (QLoRA, arXiv:2305.14314), LLM.int8 (arXiv:2208.07339).

In 4 bits a layer X has, beside X.weight, X.weight.absmax and .quant_map and, where the first is packed in turn,
.nested_absmax and .nested_quant_map; X.weight.quant_state.bitsandbytes__nf4 is JSON as bytes. In 8 bits it has X.SCB,
the largest number of each row, and may have X.weight_format, the order of its bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import NotRequired, TypedDict

from dsctl_core.checkpoint.finite import refuse_not_finite
from dsctl_core.checkpoint.packed_layer import AGAIN, Held
from dsctl_core.checkpoint.quantized import INSTEAD, LLM_INT8
from dsctl_core.errors import DsctlError
from dsctl_core.files.json import checked, parse_json
from dsctl_core.memory.quantize import BITSANDBYTES, BLOCK

if TYPE_CHECKING:
    from torch import Tensor, nn

PARTS = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
LONGEST_STATE = 4096  # bytes of the JSON of a layer
SCB, ORDER = "SCB", "weight_format"
BY_ROWS = 0  # the order of the bytes of a matrix as torch has it; others are those of some GPUs


class State(TypedDict):
    """What the JSON of a layer says, as far as it is read."""

    quant_type: str
    blocksize: int
    shape: list[int]
    nested_blocksize: NotRequired[int]
    nested_offset: NotRequired[float]


@dataclass(frozen=True)
class FourBits:
    """Reads layers in `form`, nf4 or fp4."""

    form: str

    @property
    def state(self) -> str:
        """What the name of the description of a packed weight ends in."""
        return f".weight.quant_state.bitsandbytes__{self.form}"

    def layers(self, tensors: Mapping[str, Any]) -> dict[str, list[str]]:
        """Return the layers that have a description."""
        found = {}
        for name in tensors:
            if name.endswith(self.state):
                layer = name.removesuffix(self.state)
                belonging = [f"{layer}.weight", *(f"{layer}.weight.{part}" for part in PARTS)]
                found[layer] = [name, *(each for each in belonging if each in tensors)]
        return found

    def held(self, folder: Path, name: str, layer: nn.Linear, parts: Mapping[str, Tensor], about: str | None) -> Held:
        """Return the bytes of the weight, the largest number of each block, and the 16 numbers that 4 bits stand for.

        The bytes of the weight may be stored as numbers of another dtype (bnb_4bit_quant_storage).
        """
        import torch

        state = self._state(folder, f"{name}{self.state}", parts[f"{name}{self.state}"])
        if state["shape"] != [layer.out_features, layer.in_features]:
            raise DsctlError(f"{folder} has {name} packed, which is no such layer of the model", hint=AGAIN)
        own = {part: parts[f"{name}.weight.{part}"] for part in PARTS if f"{name}.weight.{part}" in parts}
        numbers, absmax = layer.out_features * layer.in_features, _absmax(own, state)
        packed = parts.get(f"{name}.weight")
        sizes = packed is not None and packed.nbytes == -(-numbers // 2)
        blocks = -(-numbers // BLOCK)
        if packed is None or not sizes or absmax is None or absmax.numel() != blocks or own["quant_map"].numel() != 16:
            raise DsctlError(f"{folder}: what belongs to {name}.weight is missing or has another size", hint=AGAIN)
        refuse_not_finite([(f"{name}.weight.absmax", absmax), (f"{name}.weight.quant_map", own["quant_map"])], folder)
        beside = {"absmax": absmax, "code": own["quant_map"].float()}
        return packed.contiguous().view(torch.uint8).reshape(-1, 1), beside, BITSANDBYTES[self.form].unpack

    def simulated(self, name: str, layer: nn.Linear, entries: Mapping[str, Any]) -> Held:
        """Return what packing the layer makes, which has the sizes of what is read."""
        form = BITSANDBYTES[self.form]
        return *form.pack(layer.weight.detach()), form.unpack

    def _state(self, folder: Path, name: str, raw: Tensor) -> State:
        """Return what the JSON of a layer says; raise DsctlError for another format, or other blocks than of 64."""
        where = f"{folder}: {name}"
        if raw.element_size() != 1 or raw.is_floating_point() or raw.numel() > LONGEST_STATE:
            raise DsctlError(f"{where} is no description of a packed weight", hint=AGAIN)
        text = raw.flatten().numpy().tobytes()
        state = checked(parse_json(text, where, hint=AGAIN), State, where, hint=AGAIN)
        if (state["quant_type"], state["blocksize"]) != (self.form, BLOCK) or len(state["shape"]) != 2:
            raise DsctlError(
                f"{where} is {state['quant_type']} in blocks of {state['blocksize']}; read is {self.form} in blocks of "
                f"{BLOCK}",
                hint="use weights in bf16, and pack them: --quantize NAME=nf4",
            )
        return state


def _absmax(parts: Mapping[str, Tensor], state: State) -> Tensor | None:
    """Return the largest number of each block, float32; None if parts are missing.

    Packed, it is nested_quant_map[absmax] * nested_absmax + nested_offset, with a nested_absmax for each
    nested_blocksize of them.
    """
    if "absmax" not in parts or "quant_map" not in parts:
        return None
    absmax = parts["absmax"].flatten()
    if "nested_blocksize" not in state:
        return absmax.float() if absmax.is_floating_point() else None
    code, largest, size = parts.get("nested_quant_map"), parts.get("nested_absmax"), state["nested_blocksize"]
    if code is None or largest is None or code.numel() != 256 or size < 1 or "nested_offset" not in state:
        return None
    if largest.numel() != -(-absmax.numel() // size):
        return None
    scales = largest.float().flatten().repeat_interleave(size)[: absmax.numel()]
    return code.float().flatten()[absmax.long()] * scales + state["nested_offset"]


class EightBits:
    """Reads layers in LLM.int8.

    bitsandbytes also rounds the inputs of a layer to 8 bits, but for outliers; here they stay as they are.
    """

    def layers(self, tensors: Mapping[str, Any]) -> dict[str, list[str]]:
        """Return the layers that have the largest number of each row."""
        found = {}
        for name in tensors:
            layer, _, last = name.rpartition(".")
            if last == SCB:
                names = (f"{layer}.weight", name, f"{layer}.{ORDER}")
                found[layer] = [each for each in names if each in tensors]
        return found

    def held(self, folder: Path, name: str, layer: nn.Linear, parts: Mapping[str, Tensor], about: str | None) -> Held:
        """Return the weight (out, in) in int8, and the largest number of each row, (out,)."""
        import torch

        weight, largest = parts.get(f"{name}.weight"), parts[f"{name}.{SCB}"].float().flatten()
        order = parts.get(f"{name}.{ORDER}")
        if order is not None and order.flatten().tolist() != [BY_ROWS]:
            problem = f"{folder} has {name} in an order of bytes that one kind of GPU reads"
            raise DsctlError(problem, hint=INSTEAD)
        shape = (layer.out_features, layer.in_features)
        fits = weight is not None and weight.dtype == torch.int8 and tuple(weight.shape) == shape
        if weight is None or not fits or largest.numel() != layer.out_features:
            raise DsctlError(f"{folder}: what belongs to {name}.weight is missing or has another size", hint=AGAIN)
        refuse_not_finite([(f"{name}.{SCB}", largest)], folder)
        return weight, {"scb": largest}, BITSANDBYTES[LLM_INT8].unpack

    def simulated(self, name: str, layer: nn.Linear, entries: Mapping[str, Any]) -> Held:
        """Return what packing the layer makes, which has the sizes of what is read."""
        form = BITSANDBYTES[LLM_INT8]
        return *form.pack(layer.weight.detach()), form.unpack
