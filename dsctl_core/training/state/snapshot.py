"""Save the state of a run, and restore a run from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.files.atomic import write_json
from dsctl_core.training.distributed.fsdp import mesh_of
from dsctl_core.training.state.folder import ABOUT_FILE, PIECES, SavedState, StateFile, new_state, prune_states
from dsctl_core.training.state.pieces import read_pieces, taken, write_pieces
from dsctl_core.training.state.randomness import random_state, restore_random_state
from dsctl_core.training.state.trained import (
    load_optimizer,
    load_weights,
    optimizer_of,
    settings_of,
    trained_tensors,
    weights_of,
)
from dsctl_core.training.state.values import read_values, tensor_bytes, write_values
from dsctl_core.training.state.writing import Writing, own_group, shared

if TYPE_CHECKING:
    from torch import Tensor

    from dsctl_core.training.callbacks.base import TrainingHook, TrainingRun

# Options that say what a step is made of, as the command had them: see `accumulation_for`.
ASKED = ("batch_size", "gradient_accumulation_steps")
PATIENCE = 30.0  # seconds that a run which fails waits for the state that is being written
WEIGHTS, OPTIMIZER, HOOKS, RANDOM = (f"{name}.safetensors" for name in ("weights", "optimizer", "hooks", "random"))


@dataclass(frozen=True)
class Position:
    """The progress of a run: updates in total, the epoch, and the updates in the epoch."""

    step: int
    epoch: int
    step_in_epoch: int


@dataclass(frozen=True)
class Taken:
    """A state in main memory: the content of each file of the main process, and the shards of this process."""

    step: int
    files: dict[str, Any]
    about: dict[str, Any]
    pieces: dict[str, Tensor]


class Snapshots:
    """Keeps the newest `limit` states of a run in its output folder. `settings` are what its results depend on.

    A state is taken at once, by a copy in main memory, and written by a thread while training goes on; on a CPU, where
    the thread would take the time from the training, and where small models are trained, it is written at once. Weights
    that are sharded are written in pieces, by each process its own. Use it as a context: its end waits for the thread.
    """

    def __init__(self, run: TrainingRun, hooks: Sequence[TrainingHook], limit: int, settings: dict[str, Any]) -> None:
        self.run, self.limit, self.settings, self.output_path = run, limit, settings, run.logger.output_path
        self.hooks = _named(hooks)
        self.initial = settings_of(run.optimizer)
        self.saved_step: int | None = None
        self.mesh = mesh_of(run.model)
        # Threads need a group of their own: collectives of two threads in one would meet in any order.
        self.group = own_group(run.accelerator) if self.mesh is not None else None
        self.in_background = self.group is not None or run.accelerator.device.type != "cpu"
        self.writing: Writing | None = None
        self.on_written: Callable[[], None] = lambda: None  # in the main process, when a state is whole

    def __enter__(self) -> Snapshots:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.writing is not None and (kind is None or issubclass(kind, Exception)):
            self.writing.wait(None if kind is None else PATIENCE)

    @property
    def possible(self) -> bool:
        """Whether states can be saved: not with DeepSpeed, whose engine owns the optimizer's state."""
        return self.run.accelerator.distributed_type != "DEEPSPEED"

    def save(self, position: Position) -> None:
        """Take the state, unless it is saved already, and write it, or let it be written; called by all processes.

        Raises the error of the state before it, see `finish`, whose writing it waits for.
        """
        self.finish()
        if position.step == self.saved_step or not self.possible:
            return
        state = self._take(position)
        if self.in_background:
            self.writing = Writing(lambda: self._write(state))
        else:
            self._write(state)
            self.run.accelerator.wait_for_everyone()
        self.saved_step = position.step

    def require_writable(self) -> None:
        """Raise the error of a state that could not be written in the meantime."""
        if self.writing is not None and self.writing.ended:
            self.finish()

    def finish(self) -> None:
        """Wait until the newest state is written; raise the error if it could not be."""
        writing, self.writing = self.writing, None
        if writing is not None:
            writing.result()

    def rehearse(self, folder: Path) -> None:
        """Write a state into `folder`, of the main process, as `save` will do; called by all processes."""
        state = self._take(Position(self.run.step, 0, 0))
        self._fill(Path(shared(self.group, lambda: str(folder))), state, {})

    def _take(self, position: Position) -> Taken:
        """Return the state of now; called by all processes."""
        from accelerate.utils import gather_object

        run = self.run
        main, copy = run.accelerator.is_main_process, self.in_background
        values = {
            WEIGHTS: weights_of(run),
            OPTIMIZER: optimizer_of(run, self.initial),
            HOOKS: {name: state for name, hook in self.hooks.items() if (state := hook.state()) is not None},
            RANDOM: gather_object([random_state(run.accelerator.device)]),
        }
        pieces: dict[str, Tensor] = {}
        files = {name: taken(value, pieces, Path(name).stem, keep=main, copy=copy) for name, value in values.items()}
        options = (run.logger.run or {}).get("options", {})
        about = {**asdict(position), "processes": run.accelerator.num_processes, "settings": self.settings}
        about["asked"] = {name: options[name] for name in ASKED if name in options}
        return Taken(position.step, files, about, pieces)

    def _write(self, state: Taken) -> None:
        """Write a state that was taken; called by all processes. It counts once it is whole."""
        with ExitStack() as stack:
            pieces: dict[str, StateFile] = {}

            def begin() -> str:
                return str(stack.enter_context(new_state(self.output_path, state.step, pieces)))

            def end() -> None:
                write_json(Path(folder) / ABOUT_FILE, state.about)
                stack.close()
                prune_states(self.output_path, self.limit)
                self.on_written()

            if self.group is None and not self.run.accelerator.is_main_process:
                return
            folder = shared(self.group, begin)
            self._fill(Path(folder), state, pieces)
            shared(self.group, end)

    def _fill(self, folder: Path, state: Taken, pieces: dict[str, StateFile]) -> None:
        """Write the files of `state` into `folder`, and add the entries of its pieces to `pieces`."""
        if self.group is not None:
            pieces.update(write_pieces(folder / PIECES, state.pieces, self.group))

        def write() -> None:
            for name, value in state.files.items():
                write_values(folder / name, value)

        if self.group is not None or self.run.accelerator.is_main_process:
            shared(self.group, write)

    def bytes(self) -> int:
        """Return the size of a state in bytes; before the first step, with two optimizer values per weight."""
        if not self.possible:
            return 0
        run = self.run  # nothing is gathered here: one process may call this alone
        weights, optimizer = tensor_bytes(trained_tensors(run.model)), tensor_bytes(dict(run.optimizer.state))
        return weights + max(optimizer, 0 if run.step else 2 * weights)

    def restore(self, state: SavedState) -> Position:
        """Restore weights and optimizer from `state`, and return the position; called by all processes."""
        if not self.possible:
            raise UsageError(
                "DeepSpeed keeps no state that dsctl can resume from",
                hint="resume with FSDP2 or DDP, or begin anew from the saved weights, such as --lora-checkpoint FILE",
            )
        position = Position(**{name: state.about[name] for name in Position.__dataclass_fields__})
        self.run.step = position.step
        with _structure_of(state.folder / WEIGHTS):
            load_weights(self.run, self._read(state, WEIGHTS))
        with _structure_of(state.folder / OPTIMIZER):
            load_optimizer(self.run, self._read(state, OPTIMIZER), self.initial)
        self.saved_step = state.step if state.output_path == self.output_path.absolute() else None
        return position

    def restore_hooks(self, state: SavedState) -> None:
        """Restore the states of the hooks, which have started, and then the random generators."""
        with _structure_of(state.folder / HOOKS):
            for name, kept in self._read(state, HOOKS).items():
                if name in self.hooks:
                    self.hooks[name].load_state(kept)
        # Another number of processes changes no result: random numbers in training have seeds of their own.
        with _structure_of(state.folder / RANDOM):
            generators, process = read_values(state.folder / RANDOM), self.run.accelerator.process_index
            if process < len(generators):
                restore_random_state(generators[process], self.run.accelerator.device)

    def _read(self, state: SavedState, name: str) -> Any:
        return read_values(state.folder / name, read_pieces(state.folder / PIECES, Path(name).stem, self.mesh))


@contextmanager
def _structure_of(path: Path) -> Iterator[None]:
    """Turn what a value of another structure runs into, while the file `path` is restored, into a DsctlError."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise DsctlError(
            f"{path} has not the structure of such a file: {type(error).__name__}: {error}",
            hint="resume from another state",
        ) from error


def _named(hooks: Sequence[TrainingHook]) -> dict[str, TrainingHook]:
    """Return the hooks by the name of their class, with a number from the second of a class on."""
    counts: Counter[str] = Counter()
    named = {}
    for hook in hooks:
        name = type(hook).__name__
        counts[name] += 1
        named[name if counts[name] == 1 else f"{name}.{counts[name]}"] = hook
    return named
