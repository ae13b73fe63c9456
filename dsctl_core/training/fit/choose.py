"""Choose the levers that make a run fit a GPU: those that cost least come first, and what was given stays."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dsctl_core.errors import DsctlError
from dsctl_core.options import TrainOptions
from dsctl_core.options.quantize import FORMATS, require_library
from dsctl_core.readable import readable_bytes
from dsctl_core.training.fit.predict import BLOCKS, Prediction, partly_recomputed

SPARE = 0.05  # of the memory, which stays free: the prediction may be off, and something else may be on the GPU
CHECKPOINTING = "use_gradient_checkpointing"
TRIED = ("int8", "nf4")  # float8 takes as much as int8, and rounds more
INPUTS = "use_gradient_checkpointing_offload"
QUANTIZE = "quantize"

Predict = Callable[[TrainOptions], Prediction]


@dataclass(frozen=True)
class Fit:
    """The options that were chosen, with the reason for each choice, and what the run then needs in bytes."""

    options: TrainOptions
    chosen: dict[str, Any]
    reasons: tuple[str, ...]
    peak: int


def choose(
    options: TrainOptions,
    card: int,
    predict: Predict,
    formats: Sequence[str] | None = None,
    stored: Collection[str] = (),
) -> Fit:
    """Return the options with the cheapest levers that make the run fit `card` bytes.

    The order is: recompute no more blocks than needed; split batches, with as many samples a step; hold a text
    encoder that stays in 8 bits; hold the frozen denoiser in 8 bits, then in 4; offload blocks. Each of these is tried
    as it is, and then with the inputs of recomputed blocks in main memory. That changes no number, and its copies run
    beside the computation, which takes longer whatever the size of a sample: 2 D bytes a token leave and come back for
    a block of D channels, which computes 24 D^2 operations a token meanwhile, and more in the backward pass. For
    D = 3072 that is 0.25 us at 25 GB/s, and 1.4 us on an RTX 4090 at its full 165 TFLOP/s. Smaller batches cost
    between nothing and half the pace, by the size of a sample, and formats round.

    Args:
        options: What was asked for; what is given in it stays.
        card: The memory of the GPU in bytes.
        predict: Returns what a run with other levers takes.
        formats: The formats that can be had (None: on this machine).
        stored: Components that are in few bits already, by their files or --fp8-models, and cannot be packed again.

    Raises:
        DsctlError: Nothing suffices; it says what the last try needs.
    """
    room = int(card * (1 - SPARE))
    known = [form for form in FORMATS if _has_library(form)] if formats is None else formats
    search = _Search(options, room, predict, [form for form in known if form in TRIED], stored)
    for found in search.tries():
        if found is not None:
            return found
    raise DsctlError(
        f"the run needs {readable_bytes(search.least)} at the least, and {readable_bytes(card)} of memory are to do",
        hint="train a LoRA in place of the whole model, on smaller pictures, or rent a larger GPU",
    )


class _Search:
    """The tries, from the cheapest on; each adds its choices to those before."""

    def __init__(
        self, options: TrainOptions, room: int, predict: Predict, formats: Sequence[str], stored: Collection[str]
    ) -> None:
        self.formats, self.stored = formats, stored
        self.asked, self.options, self.room, self.predict = options, options, room, predict
        self.chosen: dict[str, Any] = {}
        self.reasons: list[str] = []
        self.needs: list[int] = []  # of each try that does not fit

    @property
    def least(self) -> int:
        """The least that any try needs, in bytes."""
        return min(self.needs)

    def tries(self) -> Iterator[Fit | None]:
        """Yield what each try comes to: options that fit, or None."""
        self._encoders()
        given = self._is_given(CHECKPOINTING)
        yield self._try("what was given suffices" if given else "nothing has to be recomputed")
        if not given:
            kept = self.last
            self._take("", **{CHECKPOINTING: True})
            yield self._recompute(kept)
            yield self._with_inputs_away(lambda: self._recompute(kept))
            self.reasons.append(f"{CHECKPOINTING}: all blocks are recomputed")
        else:
            yield self._with_inputs_away(self._try)
        size = self.options.training.batch_size
        while size > 1 and size % 2 == 0 and not self._is_given("gradient_accumulation_steps"):
            size //= 2
            splits = self.asked.training.batch_size // size
            values: dict[str, Any] = {"batch_size": size, "gradient_accumulation_steps": splits}
            if size == 1 and self.asked.training.group_by_prompt_length:
                values["group_by_prompt_length"] = False
            self.reasons = [each for each in self.reasons if not each.startswith("batches of ")]
            self._take(f"batches of {size}, {splits} for a step, which stays as large", **values)
            yield from self._each_way(self._try)
        if self.last.resident and self.formats and self.last.encoder and self._can_pack(self.last.encoder):
            yield from self._resident_encoder(self.last.encoder, self.formats[0])
        formats = self.formats if self._can_pack("dit") else ()
        for form in formats:
            self._pack("dit", form)
            yield from self._each_way(self._try)
        if not self._is_given("offload_blocks") and self._can_offload():
            if formats:
                self._unpack("dit")
            yield from self._each_way(self._offload)
            # What waits in fewer bits takes less, of the GPU's memory and of the time to copy it.
            for form in formats:
                self._pack("dit", form)
                yield from self._each_way(self._offload)

    def _each_way(self, attempt: Callable[[], Fit | None]) -> Iterator[Fit | None]:
        """Yield what `attempt` comes to, with the inputs of recomputed blocks on the GPU and then in main memory."""
        yield attempt()
        yield self._with_inputs_away(attempt)

    def _with_inputs_away(self, attempt: Callable[[], Fit | None]) -> Fit | None:
        """Return what `attempt`, which has failed, comes to where the inputs of blocks wait in main memory."""
        if self._is_given(INPUTS) or not self.options.training.use_gradient_checkpointing:
            return None
        before = self.last
        self._take("", **{INPUTS: True})
        saved = before.training - self.predict(self.options).training
        found = attempt() if saved > 0 else None
        if found is None:
            self._drop(INPUTS)
            return None
        saved = saved * found.chosen.get(BLOCKS, before.blocks) // max(before.blocks, 1)
        away = f"{INPUTS}: the inputs of recomputed blocks, {readable_bytes(saved)}, wait in main memory"
        return replace(found, reasons=(*found.reasons, away))

    def _resident_encoder(self, encoder: str, form: str) -> Iterator[Fit | None]:
        """Pack the largest encoder where it is there in training: it runs once a sample, and has no backward pass."""
        self._pack(encoder, form)
        self.reasons.append(f"{QUANTIZE} {encoder}={form}: without a cache it is there while the denoiser is trained")
        yield from self._each_way(self._try)

    def _encoders(self) -> None:
        """Pack the largest encoder where the first stage alone is too large."""
        self.last = self.predict(self.options)
        encoder = self.last.encoder
        if self.last.stage_one <= self.room or not encoder or not self._can_pack(encoder):
            return
        for form in self.formats:
            self._pack(encoder, form)
            self.last = self.predict(self.options)
            if self.last.stage_one <= self.room:
                break
        if encoder in self._held():
            self.reasons.append(f"{QUANTIZE} {encoder}: the first stage alone takes more than the GPU has")

    def _recompute(self, kept: Prediction) -> Fit | None:
        """Recompute as few blocks as needed; of those that are not, activations are `kept`."""
        self.last = self.predict(self.options)
        if self.last.peak > self.room:
            self.needs.append(self.last.peak)
            return None
        most = kept.blocks
        takes = {count: partly_recomputed(kept, self.last, count) for count in range(1, most)}
        needed = next((count for count, training in takes.items() if training <= self.room), most)
        training = takes.get(needed, self.last.training)
        if needed < most and not self._is_given(BLOCKS):
            self._take("", **{BLOCKS: needed})
        why = f"{needed} of {most} blocks are recomputed, which saves {readable_bytes(kept.training - training)}"
        reasons = (*self.reasons, f"{CHECKPOINTING}: {why}")
        return Fit(self.options, self.chosen, reasons, max(training, self.last.stage_one))

    def _offload(self) -> Fit | None:
        """Offload as few blocks as needed, of the size that each has; two of them are on the GPU at a time."""
        last = self.last = self.predict(self.options)
        counts = range(1, last.most_offloaded + 1)
        needed = next((n for n in counts if last.training - last.saved_by_offload(n) <= self.room), None)
        if needed is None or last.stage_one > self.room:
            self.needs.append(max(last.stage_one, last.training - last.saved_by_offload(last.most_offloaded)))
            return None
        self._take("", offload_blocks=needed)
        reasons = (*self.reasons, f"offload_blocks {needed}: the weights of these blocks wait in main memory")
        peak = max(last.training - last.saved_by_offload(needed), last.stage_one)
        return Fit(self.options, self.chosen, reasons, peak)

    def _try(self, why: str = "") -> Fit | None:
        self.last = self.predict(self.options)
        if self.last.peak > self.room:
            self.needs.append(self.last.peak)
            return None
        return Fit(self.options, self.chosen, tuple(self.reasons or filter(None, [why])), self.last.peak)

    def _take(self, reason: str, **values: Any) -> None:
        self.chosen |= values
        self.options = with_values(self.asked, self.chosen)
        if reason:
            self.reasons.append(reason)

    def _drop(self, name: str) -> None:
        del self.chosen[name]
        self.options = with_values(self.asked, self.chosen)

    def _held(self) -> dict[str, str]:
        """Return the formats of components, given or chosen, by name."""
        parts = self.chosen.get(QUANTIZE, self.asked.training.quantize)
        return dict(part.split("=") for part in parts)

    def _pack(self, component: str, form: str) -> None:
        """Hold a component in `form`, and others as they are."""
        self.reasons = [each for each in self.reasons if not each.startswith(f"{QUANTIZE} {component}")]
        why = f"{QUANTIZE} {component}={form}: frozen weights take most of the memory" if component == "dit" else ""
        self._take(why, quantize=tuple(f"{name}={held}" for name, held in (self._held() | {component: form}).items()))

    def _unpack(self, component: str) -> None:
        """Hold a component that was chosen as it is, and others as they are."""
        others = {name: form for name, form in self._held().items() if name != component}
        self.reasons = [each for each in self.reasons if not each.startswith(f"{QUANTIZE} {component}")]
        if others:
            self._take("", quantize=tuple(f"{name}={form}" for name, form in others.items()))
        else:
            self._drop(QUANTIZE)

    def _is_given(self, name: str) -> bool:
        return self.asked.given(name)

    def _can_pack(self, component: str) -> bool:
        """Return whether a component can be held in fewer bits; what is given for others does not matter."""
        training = self.asked.training
        given = [*(part.partition("=")[0] for part in training.quantize), *training.fp8_models]
        return component not in (*given, *self.stored) and (component != "dit" or self._is_frozen())

    def _can_offload(self) -> bool:
        return self._is_frozen() and not self.asked.memory.compile

    def _is_frozen(self) -> bool:
        """Return whether nothing else is done with the weights of the denoiser than to compute with them."""
        training = self.asked.training
        whole = [name.split(".")[0] for name in training.trainable_models or ()]
        computed = self.asked.adapter.use_dora or self.asked.memory.float8  # with the weights as they are
        return "dit" not in whole and not computed


def _has_library(form: str) -> bool:
    try:
        require_library(form)
    except DsctlError:
        return False
    return True


def with_values(options: TrainOptions, values: dict[str, Any]) -> TrainOptions:
    """Return `options` with other values of some of them, which then count as given."""
    given = {name: options.value_of(name) for name in options.given_names()}
    return TrainOptions(**{**given, **values})
