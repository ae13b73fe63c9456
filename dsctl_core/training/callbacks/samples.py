"""Draw sample pictures during a run, with the current weights and always the same prompts and seeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsctl_core.files.atomic import prepare_folder
from dsctl_core.media.image_file import as_picture, write_png
from dsctl_core.training.callbacks.base import TrainingHook
from dsctl_core.training.callbacks.eval_mode import eval_mode, in_lockstep
from dsctl_core.training.output.folder import SAMPLES_FOLDER
from dsctl_core.version import __version__

if TYPE_CHECKING:
    from PIL.Image import Image

    from dsctl_core.training.callbacks.base import TrainingRun
    from dsctl_core.training.callbacks.sample_pipeline import SamplePipeline
    from dsctl_core.training.callbacks.sample_prompts import SamplePrompt
    from dsctl_core.training.callbacks.trackers import Trackers


class Samples(TrainingHook):
    """Draws `prompts` before the first step, every `every` steps, and after the last.

    They are written to `samples/step-N-I.png`, with prompt and settings in the metadata; the frames of a clip stand in
    a row. With several processes each draws its share, and the main process writes.
    """

    def __init__(
        self, sample_pipeline: SamplePipeline, prompts: Sequence[SamplePrompt], every: int, trackers: Trackers
    ) -> None:
        self.sample_pipeline, self.prompts, self.every, self.trackers = sample_pipeline, list(prompts), every, trackers
        self.drawn = -1  # the last step that was drawn

    def on_training_start(self, run: TrainingRun) -> None:
        """Draw with the untrained model."""
        if run.step == 0:
            self._draw(run)

    def on_step_end(self, run: TrainingRun, record: Any) -> None:
        """Draw every `every` steps."""
        if run.step % self.every == 0:
            self._draw(run)

    def on_training_end(self, run: TrainingRun) -> None:
        """Draw with the trained model."""
        if self.drawn != run.step:
            self._draw(run)

    def _draw(self, run: TrainingRun) -> None:
        from accelerate.utils import gather_object

        self.drawn = run.step
        process, processes = run.accelerator.process_index, run.accelerator.num_processes
        together = in_lockstep(run)
        own = range(len(self.prompts)) if together else range(process, len(self.prompts), processes)
        pipe = run.model.pipe
        with eval_mode(run):
            pictures = [
                (number, as_picture(self.sample_pipeline.draw(pipe, self.prompts[number], run.accelerator.autocast)))
                for number in own
            ]
        if processes > 1 and not together:
            pictures = sorted(gather_object(pictures), key=lambda pair: pair[0])
        if run.accelerator.is_main_process:
            self._write(run, [picture for _, picture in pictures])
        run.progress.note(f"Step {run.step}: {_counted(len(pictures))} in {self._folder(run)}")

    def _write(self, run: TrainingRun, pictures: list[Image]) -> None:
        folder = self._folder(run)
        prepare_folder(folder)
        for number, (prompt, picture) in enumerate(zip(self.prompts, pictures, strict=True), 1):
            about = {**prompt.about(), "step": run.step, "dsctl_version": __version__}
            write_png(folder / f"step-{run.step}-{number}.png", picture, about)
        self.trackers.log_pictures(pictures, run.step)

    @staticmethod
    def _folder(run: TrainingRun) -> Path:
        return run.logger.output_path / SAMPLES_FOLDER


def _counted(count: int) -> str:
    return f"{count} sample{'s' if count > 1 else ''}"
