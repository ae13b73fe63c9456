"""Place the denoisers of a pipeline: one of several on its device at a time, the others in main memory."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dsctl_core.pipeline import BasePipeline


class Placement:
    """Moves the denoiser in use to the device of the pipeline, and the previous one to main memory.

    Denoisers in `staying` are never moved away: the optimizer holds the tensors of a denoiser that is being trained.
    On a CPU nothing is moved.
    """

    def __init__(self, staying: Collection[str] = ()) -> None:
        self.staying = frozenset(staying)

    def use(self, pipe: BasePipeline, name: str) -> None:
        """Move the denoiser `name` to the device of `pipe`, and the others, except `staying`, to main memory."""
        if pipe.device.type != "cpu":
            for other in pipe.parts.denoisers:
                if other.name not in (name, *self.staying) and other.name in pipe.components:
                    pipe.component(other.name).to("cpu")
        pipe.load_models_to_device((name,))
