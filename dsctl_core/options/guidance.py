"""The scale of classifier-free guidance, one for all denoisers of a model or one for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, PlainSerializer

from dsctl_core.errors import unknown_name
from dsctl_core.options.messages import Takes

MOST = 100


@dataclass(frozen=True)
class Guidance:
    """Scales of guidance by the name of the denoiser; one under the name "" is that of all denoisers."""

    form: ClassVar[str] = "SCALE"

    scales: tuple[tuple[str, float], ...]

    @classmethod
    def parse(cls, value: Any) -> Guidance:
        """Read SCALE, a number or its text, or DENOISER=SCALE, several separated by commas."""
        if isinstance(value, Guidance):
            return value
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError(f"{value!r} is no number")
        text = str(value)
        if "=" not in text:
            return cls((("", _number(text)),))
        pairs = [part.partition("=") for part in text.split(",")]
        for name, equals, _ in pairs:
            if not equals or not name.strip():
                raise ValueError(f"{text!r} names no denoiser somewhere")
        names = [name.strip() for name, _, _ in pairs]
        if len(set(names)) < len(names):
            raise ValueError(f"{text!r} names one of them twice")
        return cls(tuple((name.strip(), _number(scale)) for name, _, scale in pairs))

    @property
    def plain(self) -> float | str:
        """The number, or the text of several."""
        if self.scales[0][0] == "":
            return self.scales[0][1]
        return ",".join(f"{name}={scale:g}" for name, scale in self.scales)

    def __str__(self) -> str:
        return str(self.plain)

    def of(self, denoisers: Sequence[str], own: float | Sequence[float]) -> float | tuple[float, ...]:
        """Return the scale for the pipeline of a model: a number, or one for each of `denoisers`, in order.

        `own` is the model's, which a denoiser without a scale keeps. Raises UsageError for a name that is not one of
        the denoisers.
        """
        given = dict(self.scales)
        if "" in given:
            return given[""]
        for name in given:
            if name not in denoisers:
                raise unknown_name("denoiser", name, list(denoisers))
        usual = list(own) if isinstance(own, Sequence) else [own] * len(denoisers)
        scales = tuple(given.get(name, each) for name, each in zip(denoisers, usual, strict=True))
        return scales[0] if len(scales) == 1 else scales


def _number(text: str) -> float:
    try:
        scale = float(text)
    except ValueError:
        raise ValueError(f"{text.strip()!r} is no number") from None
    if not 0 <= scale <= MOST:  # also false for nan
        raise ValueError(f"the scale {text.strip()} is not from 0 to {MOST}")
    return scale


GuidanceScale = Annotated[
    Guidance,
    BeforeValidator(Guidance.parse),
    PlainSerializer(lambda guidance: guidance.plain),
    Takes(f"a number from 0 to {MOST}, or one for each of several denoisers, such as dit=4,dit_2=3"),
]
