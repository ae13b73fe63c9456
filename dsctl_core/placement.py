"""Place the denoisers of a pipeline: one of several on its device at a time, the others in main memory."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dsctl_core.pipeline import BasePipeline


class Placement:
    """Brings the denoiser that acts next to the device of a pipeline, and sends the one before it to main memory.

    Those in `staying` are never sent away: what is being trained has an optimizer that holds its tensors. On a CPU
    everything is in main memory, and nothing moves.
    """

    def __init__(self, staying: Collection[str] = ()) -> None:
        self.staying = frozenset(staying)

    def use(self, pipe: BasePipeline, name: str) -> None:
        """Have the denoiser called `name` on the device of `pipe`."""
        if pipe.device.type != "cpu":
            for other in pipe.parts.denoisers:
                if other.name not in (name, *self.staying) and other.name in pipe.components:
                    pipe.component(other.name).to("cpu")
        pipe.load_models_to_device((name,))
