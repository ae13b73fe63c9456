"""Place the components of a pipeline: what runs is on its device, and what waits can be in main memory."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from dsctl_core.memory.host_copies import HostCopies
from dsctl_core.memory.offload import free_slabs

if TYPE_CHECKING:
    from dsctl_core.pipeline import BasePipeline


class Placement:
    """Moves the components in use to the device of the pipeline, and others to main memory.

    Of several denoisers one is on the device at a time. With `apart`, that holds for all components: each is there
    only while it is asked for. Those in `staying` are never moved away: the optimizer holds the tensors of a denoiser
    that is being trained. On a CPU nothing is moved.
    """

    def __init__(self, staying: Collection[str] = (), apart: bool = False) -> None:
        self.staying, self.apart = frozenset(staying), apart
        self.copies = HostCopies()

    def use(self, pipe: BasePipeline, name: str, beside: Sequence[str] = ()) -> None:
        """Move the denoiser `name`, and the components `beside` it, to the device; other denoisers to main memory."""
        self.move_away(pipe, [other.name for other in pipe.parts.denoisers if other.name != name])
        pipe.load_models_to_device((*beside, name))

    def bring(self, pipe: BasePipeline, name: str) -> None:
        """Move the component `name` to the device."""
        self.copies.to_device(pipe.component(name), pipe.device)

    def make_room(self, pipe: BasePipeline, names: Collection[str]) -> None:
        """With `apart`, move all components but `names` to main memory."""
        if self.apart:
            self.move_away(pipe, [other for other in pipe.components if other not in names])

    def move_away(self, pipe: BasePipeline, names: Collection[str]) -> None:
        """Move the components `names`, as far as they are loaded and not in `staying`, to main memory."""
        if pipe.device.type == "cpu":
            return
        for name in names:
            if name in pipe.components and name not in self.staying:
                self.copies.to_host(pipe.component(name))
                free_slabs(pipe.component(name))
