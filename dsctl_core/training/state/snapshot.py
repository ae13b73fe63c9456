"""Save the state of a run, and restore a run from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.files.atomic import write_json
from dsctl_core.training.distributed.fsdp import whole_state
from dsctl_core.training.state.folder import ABOUT_FILE, SavedState, new_state, prune_states
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

if TYPE_CHECKING:
    from dsctl_core.training.callbacks.base import TrainingHook, TrainingRun

# Options that say what a step is made of, as the command had them: see `accumulation_for`.
ASKED = ("batch_size", "gradient_accumulation_steps")
WEIGHTS, OPTIMIZER, HOOKS, RANDOM = (f"{name}.safetensors" for name in ("weights", "optimizer", "hooks", "random"))


@dataclass(frozen=True)
class Position:
    """The progress of a run: updates in total, the epoch, and the updates in the epoch."""

    step: int
    epoch: int
    step_in_epoch: int


class Snapshots:
    """Keeps the newest `limit` states of a run in its output folder. `settings` are what its results depend on."""

    def __init__(self, run: TrainingRun, hooks: Sequence[TrainingHook], limit: int, settings: dict[str, Any]) -> None:
        self.run, self.limit, self.settings, self.output_path = run, limit, settings, run.logger.output_path
        self.hooks = _named(hooks)
        self.initial = settings_of(run.optimizer)
        self.saved_step: int | None = None

    @property
    def possible(self) -> bool:
        """Whether states can be saved: not with DeepSpeed, whose engine owns the optimizer's state."""
        return self.run.accelerator.distributed_type != "DEEPSPEED"

    def save(self, position: Position) -> None:
        """Write the state, unless it is written already; called by all processes."""
        if position.step == self.saved_step or not self.possible:
            return
        accelerator = self.run.accelerator
        values = self.collect()
        if accelerator.is_main_process:
            options = (self.run.logger.run or {}).get("options", {})
            about = {**asdict(position), "processes": accelerator.num_processes, "settings": self.settings}
            about["asked"] = {name: options[name] for name in ASKED if name in options}
            with new_state(self.output_path, position.step) as folder:
                for name, value in values.items():
                    write_values(folder / name, value)
                write_json(folder / ABOUT_FILE, about)
            prune_states(self.output_path, self.limit)
        self.saved_step = position.step
        accelerator.wait_for_everyone()

    def collect(self) -> dict[str, Any]:
        """Return the content of each file of the state; called by all processes."""
        from accelerate.utils import gather_object

        run = self.run
        if not self.possible:
            return {}
        return {
            WEIGHTS: weights_of(run),
            OPTIMIZER: optimizer_of(run, self.initial),
            HOOKS: whole_state(
                {name: state for name, hook in self.hooks.items() if (state := hook.state()) is not None},
                keep=run.accelerator.is_main_process,
            ),
            RANDOM: gather_object([random_state(run.accelerator.device)]),
        }

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
            load_weights(self.run, read_values(state.folder / WEIGHTS))
        with _structure_of(state.folder / OPTIMIZER):
            load_optimizer(self.run, read_values(state.folder / OPTIMIZER), self.initial)
        self.saved_step = state.step if state.output_path == self.output_path.absolute() else None
        return position

    def restore_hooks(self, state: SavedState) -> None:
        """Restore the states of the hooks, which have started, and then the random generators."""
        with _structure_of(state.folder / HOOKS):
            for name, kept in read_values(state.folder / HOOKS).items():
                if name in self.hooks:
                    self.hooks[name].load_state(kept)
        # Another number of processes changes no result: random numbers in training have seeds of their own.
        with _structure_of(state.folder / RANDOM):
            generators, process = read_values(state.folder / RANDOM), self.run.accelerator.process_index
            if process < len(generators):
                restore_random_state(generators[process], self.run.accelerator.device)


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
