"""Say that copying the run to its mirror has failed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dsctl_core.training.callbacks.base import TrainingHook

if TYPE_CHECKING:
    from dsctl_core.training.callbacks.base import TrainingRun
    from dsctl_core.training.output.mirror import Mirror


class MirrorWarnings(TrainingHook):
    """Says once that an upload has failed, and is tried again."""

    def __init__(self, mirror: Mirror) -> None:
        self.mirror, self.told = mirror, False

    def on_step_end(self, run: TrainingRun, record: Any) -> None:
        """Look at the upload before."""
        failed = self.mirror.failed
        if failed is not None and not self.told:
            run.progress.note(f"Warning: {failed.problem}; it is tried again, and the run goes on")
        self.told = failed is not None
