"""Predict the peak memory of a run on a GPU from short models: it is linear in the number of blocks of each kind."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from dsctl_core.memory.offload import bytes_saved
from dsctl_core.options import TrainOptions
from dsctl_core.training.dry_run.estimate import Encoded, Estimate, Memory
from dsctl_core.training.dry_run.gpu_rules import reserved
from dsctl_core.training.model.open import ModelUse

if TYPE_CHECKING:
    from dsctl_core.training.plan.plan import TrainingPlan

DEPTH = 2  # blocks of each kind in the shortest model: with one, the first and the last are the same


@dataclass(frozen=True)
class Prediction:
    """What a run needs of a GPU, in bytes: at its peak, and for training and the first stage alone.

    `blocks` is the number of repeated blocks of a denoiser that differ in what they take, and `sizes` the bytes of each
    block of each network that can be offloaded.
    """

    peak: int
    training: int
    stage_one: int
    blocks: int
    sizes: tuple[tuple[int, ...], ...]

    @property
    def most_offloaded(self) -> int:
        """The largest number of blocks that can be offloaded."""
        return min(map(len, self.sizes), default=0)

    def saved_by_offload(self, count: int) -> int:
        """Return the bytes that leave the GPU with `count` offloaded blocks of each network."""
        return sum(bytes_saved(sizes, count) for sizes in self.sizes)


class Predictor:
    """Predicts runs that differ from `plan` in options of memory, for a GPU of `card` bytes."""

    def __init__(self, plan: TrainingPlan, card: int) -> None:
        self.plan, self.card = plan, card
        self._encoded: dict[Any, Encoded] = {}  # by the formats of the components of the first stage

    def predict(self, options: TrainOptions) -> Prediction:
        """Return what the run with `options` needs, of which all blocks are recomputed or none."""
        offloaded = options.memory.offload_blocks  # of the whole model, which short ones do not have
        memory = options.memory.model_copy(update={"offload_blocks": 0})
        plan = with_options(self.plan, options.model_copy(update={"memory": memory}))
        first = set(plan.stages.first_components)
        key = tuple(part for part in options.training.quantize if part.partition("=")[0] in first)
        shortest = Estimate(plan, DEPTH, self.card, encoded=self._encoded.get(key))
        base = _values(shortest.result().memory)
        assert shortest.encoded is not None
        self._encoded[key] = shortest.encoded
        total = dict(base)
        lengths = shortest.model.cut
        for name, length in lengths.items():
            longer = Estimate(plan, DEPTH, self.card, name, shortest.encoded)
            more = _values(longer.result().memory)
            for part in total:
                total[part] += (more[part] - base[part]) * (length - DEPTH)
        training = reserved(round(total["training"]), round(total["weights"]))
        stage_one = reserved(round(base["stage_one"]), 0)
        found = Prediction(0, training, stage_one, sum(lengths.values()), shortest.sizes)
        training -= found.saved_by_offload(min(offloaded, found.most_offloaded))
        return replace(found, training=training, peak=max(training, stage_one))


def _values(memory: Memory) -> dict[str, float]:
    values = {name: float(value) for name, value in asdict(memory).items()}
    return {**values, "training": values["weights"] + values["step"]}


def with_options(plan: TrainingPlan, options: TrainOptions) -> TrainingPlan:
    """Return `plan` with `options`, which differ from its own in options of memory."""
    use = ModelUse.of_training(options).located(plan.model)
    encoding = None if plan.encoding is None else replace(plan.encoding, edits=use.edits)
    return replace(plan, options=options, use=use, encoding=encoding)
