"""Log metrics and samples to experiment trackers, through accelerate."""

from __future__ import annotations

import csv
import importlib.util
import json
import logging
import os
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, on_main_process
from typing_extensions import TypedDict

from dsctl_core.errors import DsctlError
from dsctl_core.files.atomic import write_error, write_json, write_text
from dsctl_core.files.json import read_json_as
from dsctl_core.options.callbacks import TRACKERS
from dsctl_core.report.runs import VALIDATION_LOSS, loss_of
from dsctl_core.training.callbacks.base import TrainingHook
from dsctl_core.training.callbacks.tracked_samples import log_samples
from dsctl_core.training.output.folder import CSV_FILE, TRACKERS_FILE
from dsctl_core.training.output.logger import StepRecord

if TYPE_CHECKING:
    from PIL.Image import Image

    from dsctl_core.media.clip import Clip
    from dsctl_core.training.callbacks.base import TrainingRun

logger = logging.getLogger(__name__)

NOT_CURVES = {"step"}
LOGIN = {
    "wandb": "log in with `wandb login`, or set WANDB_MODE=offline to keep the run on this machine",
    "swanlab": "log in with `swanlab login`, or set SWANLAB_MODE=local to keep the run on this machine",
}


def require_trackers(names: Sequence[str]) -> None:
    """Raise a DsctlError for a tracker whose package is not installed."""
    for name in names:
        package = TRACKERS[name]
        if package is not None and importlib.util.find_spec(package[0]) is None:
            raise DsctlError(
                f"--track {name} needs the package {package[0]}, which is not installed", hint=f"run `{package[1]}`"
            )


class Identity(TypedDict):
    """The content of TRACKERS_FILE: the name of the run in the trackers."""

    id: str


class CsvTracker(GeneralTracker):
    """Writes `metrics.csv`: one row per call of `log`; a cell without a value is empty."""

    name = "csv"
    requires_logging_directory = False

    def __init__(self, folder: Path, step: int, labels: Sequence[str] = ()) -> None:
        super().__init__()
        self.path, self.step = folder / CSV_FILE, step
        own = [field.name for field in fields(StepRecord) if field.name != "losses"]
        self.columns = [*own, VALIDATION_LOSS, *map(loss_of, labels)]

    @on_main_process
    def start(self) -> None:
        """Create the file; of an existing one keep the rows before the step that the run starts from."""
        kept: list[dict[str, str]] = []
        if self.step and self.path.is_file():
            with self.path.open(encoding="utf-8", newline="") as stream:
                kept = [row for row in csv.DictReader(stream) if int(row["step"]) <= self.step]
        write_text(self.path, ",".join(self.columns) + "\n")
        for row in kept:
            self._append(row)

    @property
    def tracker(self) -> Path:
        """The path of the file."""
        return self.path

    @on_main_process
    def store_init_configuration(self, values: dict[str, Any]) -> None:
        """Do nothing: run.json has the options."""

    @on_main_process
    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        """Append a row."""
        self._append({"step": step, **values})

    def _append(self, row: Mapping[str, Any]) -> None:
        try:
            with self.path.open("a", encoding="utf-8", newline="") as stream:
                csv.DictWriter(stream, self.columns, lineterminator="\n").writerow(row)
        except OSError as error:
            raise write_error(self.path, error) from error


@dataclass(frozen=True)
class Tracking:
    """Where the trackers store a run: the output folder, the project, and a name that a resumed run keeps."""

    folder: Path
    project: str
    identity: str
    step: int  # that the run starts from
    labels: tuple[str, ...] = ()  # of several datasets

    def arguments(self, name: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return (args, kwargs) of accelerate's tracker called `name`, so that a resumed run is continued there."""
        folder, run = self.folder, self.folder.absolute().name
        # Drop TensorBoard's events after the state that the run resumes from: these steps are repeated.
        purge = {"purge_step": self.step + 1} if self.step else {}
        known: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
            "tensorboard": (("tensorboard", folder), purge),
            "wandb": ((self.project,), {"name": run, "id": self.identity, "resume": "allow", "dir": str(folder)}),
            "swanlab": (
                (self.project,),
                {
                    "experiment_name": run,
                    "id": self.identity,
                    "resume": "allow",
                    "logdir": str(folder / "swanlab"),
                },
            ),
            "trackio": ((self.project,), {"name": f"{run}-{self.identity[:6]}", "resume": "allow"}),
            "comet_ml": ((self.project,), {"experiment_key": self.identity * 2}),
            "aim": ((run, folder), {"experiment": self.project}),
            "mlflow": ((self.project,), {"run_name": run}),
            "clearml": ((self.project,), {"task_name": run}),
            "dvclive": ((run,), {"dir": str(folder / "dvclive"), "resume": self.step > 0}),
        }
        return known[name]

    def build(self, name: str) -> GeneralTracker:
        """Build the tracker called `name` without starting it."""
        if name == "csv":
            return CsvTracker(self.folder, self.step, self.labels)
        given, named = self.arguments(name)
        return LOGGER_TYPE_TO_CLASS[name](*given, **named)


class Trackers(TrainingHook):
    """Logs each step, and the values of other hooks, to the trackers called `names`.

    A tracker that cannot be started stops the run; one that fails later is dropped with a warning, so that no run is
    lost because a server is down.
    """

    def __init__(
        self, names: Sequence[str], project: str, config: Mapping[str, Any], labels: Sequence[str] = ()
    ) -> None:
        self.names, self.project, self.config, self.labels = tuple(names), project, flat(config), tuple(labels)
        self.running: list[GeneralTracker] = []

    def on_training_start(self, run: TrainingRun) -> None:
        """Start the trackers and log the options."""
        if not self.names:
            return
        tracking = Tracking(run.logger.output_path, self.project, self._identity(run), run.step, self.labels)
        for name in self.names:
            tracker = tracking.build(name)
            try:
                with nobody_to_ask():
                    tracker.start()
                if name == "tensorboard":  # its table of hyperparameters would show up as a second run
                    tracker.log({"options": f"```\n{json.dumps(self.config, indent=2)}\n```"}, step=run.step)
                else:
                    tracker.store_init_configuration(self.config)
            except Exception as error:
                raise DsctlError(
                    f"--track {name} could not start: {str(error).strip() or type(error).__name__}",
                    hint=LOGIN.get(name, f"see to it that {name} works by itself, or leave it out"),
                ) from error
            self.running.append(tracker)
            run.accelerator.trackers.append(tracker)  # `end_training()` of the accelerator finishes them
        if run.accelerator.is_main_process and set(self.names) - {"csv", "tensorboard"}:
            write_json(tracking.folder / TRACKERS_FILE, {"id": tracking.identity})

    def on_step_end(self, run: TrainingRun, record: Any) -> None:
        """Log the metrics of the step."""
        self.log({name: value for name, value in record.values().items() if name not in NOT_CURVES}, record.step)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log `values` at `step`."""
        self._each(lambda tracker: tracker.log(dict(values), step=step))

    def log_samples(self, samples: Sequence[Image | Clip], files: Sequence[Path], step: int) -> None:
        """Log the samples of a step, and their files, to the trackers that support pictures.

        Clips are logged as such where the tracker takes them, else as a picture with the frames in a row.
        """
        self._each(lambda tracker: log_samples(tracker, samples, files, step))

    def _each(self, tell: Callable[[GeneralTracker], None]) -> None:
        for tracker in list(self.running):
            try:
                tell(tracker)
            except Exception as error:
                logger.warning("--track %s failed, and is left out from now on: %s", tracker.name, error, exc_info=True)
                self.running.remove(tracker)

    def _identity(self, run: TrainingRun) -> str:
        """Return the name of the run in the trackers, the same after a resume."""
        file = run.logger.output_path / TRACKERS_FILE
        if run.step and file.is_file():
            return read_json_as(file, Identity)["id"]
        return uuid.uuid4().hex[:16]


@contextmanager
def nobody_to_ask() -> Iterator[None]:
    """Replace the standard input inside the context, so that a login prompt fails instead of waiting."""
    keyboard = sys.stdin
    with Path(os.devnull).open(encoding="utf-8") as nothing:
        sys.stdin = nothing
        try:
            yield
        finally:
            sys.stdin = keyboard


def flat(config: Mapping[str, Any]) -> dict[str, bool | str | float | int]:
    """Return `config` in the types that trackers support: nested values as JSON, without those that are None."""
    return {
        name: value if isinstance(value, bool | str | float | int) else json.dumps(value, default=str)
        for name, value in config.items()
        if value is not None
    }
