"""Draw sample pictures and clips during a run, with the current weights and always the same prompts and seeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsctl_core.files.atomic import prepare_folder
from dsctl_core.media.clip import Clip
from dsctl_core.media.image_file import as_picture
from dsctl_core.media.layers import Layers
from dsctl_core.media.made_file import SAMPLES_FOLDER, sample_suffix, write_made
from dsctl_core.readable import counted
from dsctl_core.training.callbacks.base import TrainingHook
from dsctl_core.training.callbacks.eval_mode import eval_mode, in_lockstep
from dsctl_core.version import __version__

if TYPE_CHECKING:
    from PIL.Image import Image

    from dsctl_core.training.callbacks.base import TrainingRun
    from dsctl_core.training.callbacks.sample_pipeline import SamplePipeline
    from dsctl_core.training.callbacks.sample_prompts import SamplePrompt
    from dsctl_core.training.callbacks.trackers import Trackers


class Samples(TrainingHook):
    """Draws `prompts` before the first step, every `every` steps, and after the last.

    They are written to `samples/step-N-I.png`, clips to `.mp4` (`.webp` without PyAV), with prompt and settings in the
    metadata. With several processes each draws its share, and the main process writes.
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
            drawn = [
                (number, self.sample_pipeline.draw(pipe, self.prompts[number], run.accelerator.autocast))
                for number in own
            ]
        if processes > 1 and not together:
            drawn = sorted(gather_object(drawn), key=lambda pair: pair[0])
        if run.accelerator.is_main_process:
            # Layers are one picture here: their composite and each of them in a row.
            self._write(run, [as_picture(made) if isinstance(made, Layers) else made for _, made in drawn])
        run.progress.note(f"Step {run.step}: {counted(len(drawn), 'sample')} in {self._folder(run)}")

    def _write(self, run: TrainingRun, samples: list[Image | Clip]) -> None:
        folder = self._folder(run)
        prepare_folder(folder)
        files = []
        for number, (prompt, made) in enumerate(zip(self.prompts, samples, strict=True), 1):
            about = {**prompt.about(), "step": run.step, "dsctl_version": __version__}
            if isinstance(made, Clip):
                about["fps"] = made.fps
            files.append(folder / f"step-{run.step}-{number}{sample_suffix(made)}")
            write_made(files[-1], made, about)
        self.trackers.log_samples(samples, files, run.step)

    @staticmethod
    def _folder(run: TrainingRun) -> Path:
        return run.logger.output_path / SAMPLES_FOLDER
