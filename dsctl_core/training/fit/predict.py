"""Predict the peak memory of a run on a GPU from short models: it is linear in the number of blocks of each kind."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

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
    block of each network that can be offloaded. `encoder` is the largest component of the first stage that can be
    packed, "" without one.
    """

    peak: int
    training: int
    stage_one: int
    blocks: int
    sizes: tuple[tuple[int, ...], ...]
    encoder: str = "text_encoder"

    @property
    def most_offloaded(self) -> int:
        """The largest number of blocks that can be offloaded."""
        return min(map(len, self.sizes), default=0)

    def saved_by_offload(self, count: int) -> int:
        """Return the bytes that leave the GPU with `count` offloaded blocks of each network."""
        return sum(bytes_saved(sizes, count) for sizes in self.sizes)


class Predictor:
    """Predicts runs that differ from `plan` in options of memory, for a GPU of `card` bytes.

    With a cache the two stages have nothing in common but its entries, so each is predicted once for its own options.
    """

    def __init__(self, plan: TrainingPlan, card: int) -> None:
        self.plan, self.card = plan, card
        self._encoded: dict[tuple[str, ...], Encoded] = {}  # by the formats of the components of the first stage
        self._trained: dict[str, Prediction] = {}

    def predict(self, options: TrainOptions) -> Prediction:
        """Return what the run with `options` needs, of which all blocks are recomputed or none."""
        offloaded = options.memory.offload_blocks  # of the whole model, which short ones do not have
        first = set(self.plan.stages.first_components)
        packed = options.training.quantize
        encoders = tuple(part for part in packed if self.plan.cached and part.partition("=")[0] in first)
        later = tuple(part for part in packed if part not in encoders)
        encoded = self._encode(options, encoders)
        training = options.training.model_copy(update={"quantize": later})
        memory = options.memory.model_copy(update={"offload_blocks": 0})
        found = self._train(options.model_copy(update={"training": training, "memory": memory}), encoded)
        stage_one = reserved(encoded.stage_one, 0)
        peak = found.training - found.saved_by_offload(min(offloaded, found.most_offloaded))
        whole = max(peak, stage_one)
        return replace(found, training=peak, stage_one=stage_one, peak=whole, encoder=encoded.largest)

    def _encode(self, options: TrainOptions, packed: tuple[str, ...]) -> Encoded:
        """Return the encoded row, from components of which some are `packed`."""
        if packed not in self._encoded:
            training = options.training.model_copy(update={"quantize": packed})
            plan = with_options(self.plan, options.model_copy(update={"training": training}))
            self._encoded[packed] = Estimate(plan, DEPTH, self.card).encode()
        return self._encoded[packed]

    def _train(self, options: TrainOptions, encoded: Encoded) -> Prediction:
        """Return what training alone needs."""
        key = repr(options)
        if key not in self._trained:
            plan = with_options(self.plan, options)
            shortest = Estimate(plan, DEPTH, self.card, encoded=encoded)
            base = _values(shortest.result().memory)
            total, lengths = dict(base), shortest.model.cut
            for name, length in lengths.items():
                more = _values(Estimate(plan, DEPTH, self.card, name, encoded).result().memory)
                for part in total:
                    total[part] += (more[part] - base[part]) * (length - DEPTH)
            needed = reserved(round(total["training"]), round(total["weights"]))
            self._trained[key] = Prediction(0, needed, 0, sum(lengths.values()), shortest.sizes)
        return self._trained[key]


def _values(memory: Memory) -> dict[str, float]:
    values = {name: float(value) for name, value in asdict(memory).items()}
    return {**values, "training": values["weights"] + values["step"]}


def with_options(plan: TrainingPlan, options: TrainOptions) -> TrainingPlan:
    """Return `plan` with `options`, which differ from its own in options of memory."""
    use = ModelUse.of_training(options).located(plan.model)
    encoding = None if plan.encoding is None else replace(plan.encoding, edits=use.edits)
    return replace(plan, options=options, use=use, encoding=encoding)
