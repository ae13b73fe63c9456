"""Stop a run at a loss or gradient that is not finite, and at a training that changes no weight."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from dsctl_core.cache.reader import CachedDataset
from dsctl_core.data import UnifiedDataset
from dsctl_core.errors import DsctlError, UsageError

if TYPE_CHECKING:
    from accelerate import Accelerator

MOST_NAMES = 8  # the most samples that a message names
SMALLEST_SCALE = 1.0  # of float16's loss scaling; gradients that overflow at this scale do so without scaling


def names_of(batch: Iterable[Any], dataset: Any) -> list[str]:
    """Return the names of the samples of a batch in the dataset, for those that have one."""
    rows = [sample["_row"] for sample in batch if isinstance(sample, dict) and "_row" in sample]
    knows = isinstance(dataset, UnifiedDataset | CachedDataset)
    return [dataset.location(row) if knows else f"row {row}" for row in rows]


def require_trained_loss(loss: Tensor, step: int) -> None:
    """Raise a UsageError for the loss of a micro-batch that depends on nothing trained."""
    if not loss.requires_grad:
        raise _nothing_trained(f"the loss of step {step} depends on no trained weight")


@dataclass(frozen=True)
class LossCheck:
    """The loss of a micro-batch in this process and its mean over all, with what a message about it says.

    `names` are the samples of this process, `saved` is the newest checkpoint, or None, and `resumable` says whether a
    state was saved with it.
    """

    own: float
    mean: float
    names: Sequence[str]
    saved: Path | None
    resumable: bool = True

    def require(self, step: int, accelerator: Accelerator) -> None:
        """Raise a DsctlError, in all processes, if the loss of one of them is not finite."""
        if math.isfinite(self.mean):
            return
        from accelerate.utils import gather_object

        bad = not math.isfinite(self.own)
        found = gather_object([(self.own, list(self.names))] if bad else [])
        value, names = (found[0][0], [name for _, each in found for name in each]) if found else (self.mean, [])
        raise DsctlError(
            f"the loss of step {step} is {value}{_on(names)}; nothing was updated with it; {_last(self.saved)}",
            hint=f"lower the learning rate, and check those rows{_go_on(self.saved, self.resumable)}",
        )


def require_finite_gradient(
    norm: float | None,
    step: int,
    names: Sequence[str],
    saved: Path | None,
    accelerator: Accelerator,
    *,
    resumable: bool = True,
) -> None:
    """Raise a DsctlError if the norm of a step's gradient is not finite.

    Float16's loss scaling finds its scale by overflowing now and then; the scaler itself skips such a step.

    Args:
        norm: the gradient norm over all processes, or None if it is not known.
        step: the number of the step.
        names: the samples of this process.
        saved: the newest checkpoint, or None.
        accelerator: the accelerator of the run.
        resumable: whether a state was saved with `saved`.
    """
    if norm is None or math.isfinite(norm):
        return
    if accelerator.scaler is not None and accelerator.scaler.get_scale() > SMALLEST_SCALE:
        return
    from accelerate.utils import gather_object

    everywhere = gather_object(list(names))
    raise DsctlError(
        f"the gradient of step {step} is {norm}, though its loss is finite{_on(everywhere)}; "
        f"nothing was updated with it; {_last(saved)}",
        hint=f"lower the learning rate, and check those rows{_go_on(saved, resumable)}",
    )


def require_some_gradient(norm: float | None, parameters: Sequence[nn.Parameter]) -> None:
    """Raise a UsageError if the gradient of a run's first step with a loss is zero everywhere, in all processes.

    One weight with a gradient is enough: half of a fresh LoRA has none, because its other half is zero.
    """
    if norm is None or norm != 0:
        return
    some = sum(parameter.grad is not None for parameter in parameters)
    none = "none of the trained weights has a gradient"
    zero = f"the gradient of every trained weight is zero ({some} of {len(parameters)} have one)"
    raise _nothing_trained(zero if some else none)


def _nothing_trained(problem: str) -> UsageError:
    return UsageError(
        f"{problem}: nothing would be learned",
        hint="train something that the loss depends on: --trainable-models, --lora-base-model, --lora-target-modules",
    )


def _on(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return f" on {', '.join(names[:MOST_NAMES])}{more}" if names else ""


def _last(saved: Path | None) -> str:
    return "no step is saved yet" if saved is None else f"the last good checkpoint is {saved}"


def _go_on(saved: Path | None, resumable: bool) -> str:
    return "" if saved is None or not resumable else "; --resume latest goes on from the last saved step"
