"""Choose the levers that make a run fit a GPU: those that cost least come first, and what was given stays."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from dsctl_core.errors import DsctlError
from dsctl_core.options import TrainOptions
from dsctl_core.options.quantize import FORMATS, require_library
from dsctl_core.readable import readable_bytes
from dsctl_core.training.fit.predict import Prediction

SPARE = 0.05  # of the memory, which stays free: the prediction may be off, and something else may be on the GPU
CHECKPOINTING = "use_gradient_checkpointing"
TRIED = ("int8", "nf4")  # float8 takes as much as int8, and rounds more
BLOCKS = "gradient_checkpointing_blocks"

Predict = Callable[[TrainOptions], Prediction]


@dataclass(frozen=True)
class Fit:
    """The options that were chosen, with the reason for each choice, and what the run then needs in bytes."""

    options: TrainOptions
    chosen: dict[str, Any]
    reasons: tuple[str, ...]
    peak: int


def choose(options: TrainOptions, card: int, predict: Predict, formats: Sequence[str] | None = None) -> Fit:
    """Return the options with the cheapest levers that make the run fit `card` bytes.

    The order is: recompute no more blocks than needed; split batches, with as many samples a step; hold frozen
    weights in 8 bits, then in 4; offload blocks. `formats` are those that can be had (None: on this machine).
    Raises DsctlError, with what the last try needs, if none suffices.
    """
    room = int(card * (1 - SPARE))
    known = [form for form in FORMATS if _has_library(form)] if formats is None else formats
    search = _Search(options, room, predict, [form for form in known if form in TRIED])
    for found in search.tries():
        if found is not None:
            return found
    raise DsctlError(
        f"the run needs {readable_bytes(search.least)} at the least, and {readable_bytes(card)} of memory are to do",
        hint="train a LoRA in place of the whole model, on smaller pictures, or rent a larger GPU",
    )


class _Search:
    """The tries, from the cheapest on; each adds its choices to those before."""

    def __init__(self, options: TrainOptions, room: int, predict: Predict, formats: Sequence[str]) -> None:
        self.formats = formats
        self.asked, self.options, self.room, self.predict = options, options, room, predict
        self.chosen: dict[str, Any] = {}
        self.reasons: list[str] = []
        self.least = 0
        self.kept: Prediction | None = None  # with nothing recomputed

    def tries(self) -> Iterator[Fit | None]:
        """Yield what each try comes to: options that fit, or None."""
        yield self._encoders()
        yield self._try("nothing has to be recomputed")
        self.kept = self.last
        if not self._is_given(CHECKPOINTING):
            yield self._recompute()
        size = self.options.training.batch_size
        while size > 1 and size % 2 == 0 and not self._is_given("gradient_accumulation_steps"):
            size //= 2
            splits = self.asked.training.batch_size // size
            values: dict[str, Any] = {"batch_size": size, "gradient_accumulation_steps": splits}
            if size == 1 and self.asked.training.group_by_prompt_length:
                values["group_by_prompt_length"] = False
            self._take(f"batches of {size}, {splits} for a step", **values)
            yield self._try("the samples of a step stay as many")
        whole = self.options
        for form in self.formats if not self._is_given("quantize") and self._can_pack() else ():
            self._pack("dit", form)
            yield self._try("frozen weights take most of the memory")
        if not self._is_given("offload_blocks") and self._can_offload():
            self.options = whole
            others = tuple(part for part in self.chosen.pop("quantize", ()) if not part.startswith("dit="))
            self.chosen |= {"quantize": others} if others else {}
            yield self._offload()
            # What waits in fewer bits takes less, of the GPU's memory and of the time to copy it.
            for form in self.formats if not self._is_given("quantize") and self._can_pack() else ():
                self._pack("dit", form)
                yield self._offload()

    def _encoders(self) -> Fit | None:
        """Pack the largest encoder where the first stage alone is too large; a try of its own never ends the search."""
        self.last = self.predict(self.options)
        encoder = self.last.encoder
        if self.last.stage_one <= self.room or self._is_given("quantize") or not encoder:
            return None
        for form in self.formats:
            self._pack(encoder, form)
            self.last = self.predict(self.options)
            if self.last.stage_one <= self.room:
                break
        self.reasons.append(f"quantize {encoder}: the first stage alone takes more than the GPU has")
        return None

    def _recompute(self) -> Fit | None:
        """Recompute as few blocks as needed: memory falls by the same for each."""
        kept = self.last
        self._take("", **{CHECKPOINTING: True})
        self.last = self.predict(self.options)
        self.least = self.last.peak
        if self.last.peak > self.room:
            self.reasons.append(f"{CHECKPOINTING}: all blocks are recomputed")
            return None
        saved = (kept.peak - self.last.peak) / max(kept.blocks, 1)
        needed = min(-(-(kept.peak - self.room) // max(int(saved), 1)), kept.blocks)
        if needed < kept.blocks and not self._is_given(BLOCKS):
            self._take("", **{BLOCKS: needed})
        why = f"{needed} of {kept.blocks} blocks are recomputed, which saves {readable_bytes(int(saved * needed))}"
        self.reasons.append(f"{CHECKPOINTING}: {why}")
        return Fit(self.options, self.chosen, tuple(self.reasons), int(kept.peak - saved * needed))

    def _offload(self) -> Fit | None:
        """Offload as few blocks as needed, of the size that each has; two of them are on the GPU at a time."""
        last = self.last = self.predict(self.options)
        most = last.most_offloaded
        self.least = last.peak if most == 0 else max(last.stage_one, last.training - last.saved_by_offload(most))
        counts = range(1, most + 1)
        needed = next((n for n in counts if last.training - last.saved_by_offload(n) <= self.room), None)
        if needed is None or last.stage_one > self.room:
            return None
        self._take("", offload_blocks=needed)
        held = dict(part.split("=") for part in self.chosen.get("quantize", ()))
        self.reasons = [each for each in self.reasons if not each.startswith("quantize dit") or "dit" in held]
        self.reasons.append(f"offload_blocks {needed}: the weights of these blocks wait in main memory")
        peak = max(last.training - last.saved_by_offload(needed), last.stage_one)
        return Fit(self.options, self.chosen, tuple(self.reasons), peak)

    def _try(self, why: str) -> Fit | None:
        self.last = self.predict(self.options)
        self.least = self.last.peak if self.least == 0 else min(self.least, self.last.peak)
        if self.last.peak > self.room:
            return None
        reasons = self.reasons or [why]
        return Fit(self.options, self.chosen, tuple(reasons), self.last.peak)

    def _take(self, reason: str, **values: Any) -> None:
        self.chosen |= values
        self.options = with_values(self.asked, self.chosen)
        if reason:
            self.reasons.append(reason)

    def _pack(self, component: str, form: str) -> None:
        """Hold a component in `form`."""
        parts = dict(part.split("=") for part in self.chosen.get("quantize", ()))
        parts[component] = form
        self.reasons = [each for each in self.reasons if not each.startswith(f"quantize {component}")]
        reason = f"quantize {component}={form}: frozen weights take most of the memory" if component == "dit" else ""
        self._take(reason, quantize=tuple(f"{name}={held}" for name, held in parts.items()))

    def _is_given(self, name: str) -> bool:
        return self.asked.given(name)

    def _can_pack(self) -> bool:
        packed = [part.partition("=")[0] for part in self.asked.training.quantize]
        return self._is_frozen() and "dit" not in (*packed, *self.asked.training.fp8_models)

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
