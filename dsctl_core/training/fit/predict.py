"""Predict the peak memory of a run on a GPU from short models: it is linear in the number of blocks of each kind."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from dsctl_core.memory.offload import bytes_saved
from dsctl_core.memory.recompute import kept_of_lists
from dsctl_core.options import TrainOptions
from dsctl_core.training.dry_run.estimate import Encoded, Estimate, Memory
from dsctl_core.training.dry_run.gpu_rules import reserved
from dsctl_core.training.model.open import ModelUse

if TYPE_CHECKING:
    from dsctl_core.training.plan.plan import TrainingPlan

BLOCKS = "gradient_checkpointing_blocks"
DEPTH = 2  # blocks of each kind in the shortest model: with one, the first and the last are the same


class BlockList(NamedTuple):
    """A list of repeated blocks: their number, that of the short model, and what one more takes in training, in bytes.

    Of lists that the short model has whole that is not known, and 0.
    """

    length: int
    short: int
    each: int


@dataclass(frozen=True)
class Prediction:
    """What a run needs of a GPU, in bytes: at its peak, and for training and the first stage alone.

    `lists` are the lists of repeated blocks of a denoiser. `sizes` are the bytes of each block of each network that can
    be offloaded. `encoder` is the largest component of the first stage that can be packed, "" without one; it is
    `resident` where it is there in training too. `half` is what training of the short model needs with half of its
    blocks recomputed, where these are.
    """

    peak: int
    training: int
    stage_one: int
    lists: tuple[BlockList, ...]
    sizes: tuple[tuple[int, ...], ...]
    encoder: str = "text_encoder"
    half: int = 0
    resident: bool = False

    @property
    def blocks(self) -> int:
        """The number of repeated blocks."""
        return sum(each.length for each in self.lists)

    @property
    def most_offloaded(self) -> int:
        """The largest number of blocks that can be offloaded."""
        return min(map(len, self.sizes), default=0)

    def saved_by_offload(self, count: int) -> int:
        """Return the bytes that leave the GPU with `count` offloaded blocks of each network."""
        return sum(bytes_saved(sizes, count) for sizes in self.sizes)


def partly_recomputed(kept: Prediction, recomputed: Prediction, count: int) -> int:
    """Return the bytes that training needs where `count` blocks are recomputed, from what it needs for none and all.

    A block more takes what it takes where all are kept, or all recomputed.
    """
    if count >= kept.blocks:
        return recomputed.training
    shorts = [each.short for each in kept.lists]
    keeping = kept_of_lists(count, [each.length for each in kept.lists])
    in_short = kept_of_lists(sum(shorts) // 2, shorts)
    training = recomputed.half
    for one, other, number, before in zip(kept.lists, recomputed.lists, keeping, in_short, strict=True):
        training += (number - before) * one.each + (one.length - number - (one.short - before)) * other.each
    return max(training, recomputed.training)


class Predictor:
    """Predicts runs that differ from `plan` in options of memory, for a GPU of `card` bytes.

    With a cache the two stages have nothing in common but its entries, so each is predicted once for its own options.
    """

    def __init__(self, plan: TrainingPlan, card: int) -> None:
        self.plan, self.card = plan, card
        self._encoded: dict[tuple[str, ...], Encoded] = {}  # by the formats of the components of the first stage
        self._trained: dict[str, Prediction] = {}

    def predict(self, options: TrainOptions) -> Prediction:
        """Return what the run with `options` needs."""
        # Numbers of blocks are those of the whole model, which short ones do not have.
        offloaded, recomputed = options.memory.offload_blocks, options.memory.gradient_checkpointing_blocks
        first = set(self.plan.stages.first_components)
        packed = options.training.quantize
        encoders = tuple(part for part in packed if part.partition("=")[0] in first)
        later = tuple(part for part in packed if part not in encoders) if self.plan.cached else packed
        encoded = self._encode(options, encoders)
        training = options.training.model_copy(update={"quantize": later})
        memory = options.memory.model_copy(update={"offload_blocks": 0, BLOCKS: None})
        plain = options.model_copy(update={"training": training, "memory": memory})
        found = self._train(plain, encoded)
        if recomputed is not None:
            found = replace(found, training=partly_recomputed(self._kept(plain, encoded), found, recomputed))
        stage_one = reserved(encoded.stage_one, 0)
        peak = found.training - found.saved_by_offload(min(offloaded, found.most_offloaded))
        whole, stays = max(peak, stage_one), not self.plan.cached
        return replace(found, training=peak, stage_one=stage_one, peak=whole, encoder=encoded.largest, resident=stays)

    def _kept(self, options: TrainOptions, encoded: Encoded) -> Prediction:
        """Return what training needs where nothing is recomputed."""
        off = {"use_gradient_checkpointing": False, "use_gradient_checkpointing_offload": False}
        training = options.training.model_copy(update=off)
        return self._train(options.model_copy(update={"training": training}), encoded)

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
            total, grown = dict(base), dict[str, int]()
            for name, length in shortest.model.cut.items():
                more = _values(Estimate(plan, DEPTH, self.card, name, encoded).result().memory)
                for part in total:
                    total[part] += (more[part] - base[part]) * (length - DEPTH)
                grown[name] = _reserved(more) - _reserved(base)
            cut, shorts = shortest.model.cut, shortest.lists
            lists = tuple(BlockList(cut.get(name, n), n, grown.get(name, 0)) for name, n in shorts.items())
            half = 0
            if options.training.use_gradient_checkpointing:
                blocks = options.memory.model_copy(update={BLOCKS: sum(shorts.values()) // 2})
                plan = with_options(self.plan, options.model_copy(update={"memory": blocks}))
                half = _reserved(_values(Estimate(plan, DEPTH, self.card, encoded=encoded).result().memory))
            self._trained[key] = Prediction(0, _reserved(total), 0, lists, shortest.sizes, half=half)
        return self._trained[key]


def _values(memory: Memory) -> dict[str, float]:
    values = {name: float(value) for name, value in asdict(memory).items()}
    return {**values, "training": values["weights"] + values["step"]}


def _reserved(values: dict[str, float]) -> int:
    return reserved(round(values["training"]), round(values["weights"]))


def with_options(plan: TrainingPlan, options: TrainOptions) -> TrainingPlan:
    """Return `plan` with `options`, which differ from its own in options of memory."""
    use = ModelUse.of_training(options).located(plan.model)
    encoding = None if plan.encoding is None else replace(plan.encoding, edits=use.edits)
    return replace(plan, options=options, use=use, encoding=encoding)
