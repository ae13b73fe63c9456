"""Predict what training and drawing take for each published preset, into docs/memory_table.json; takes about an hour.

    python docs/memory_predictions.py                      # all presets that the file lacks
    python docs/memory_predictions.py z-image qwen-image   # these anew; the others stay as they are

Everything is predicted by the dry run, on tensors without numbers: no GPU and no weights are needed. Presets with the
same networks, drawn at the same size, are predicted once.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from itertools import groupby
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from PIL import Image

from benchmarks.gpu_case import options_of
from benchmarks.model_data import PROMPT, inputs_of
from dsctl_core.errors import DsctlError
from dsctl_core.families import families
from dsctl_core.families.resolve import ResolvedModel, resolve_model
from dsctl_core.options import TrainOptions
from dsctl_core.progress import NoProgress
from dsctl_core.training.dry_run.drawing import DEPTH, DrawingMemory, Moment, drawing_memory
from dsctl_core.training.fit.choose import choose
from dsctl_core.training.fit.fit import GB
from dsctl_core.training.fit.predict import BlockList, Prediction, Predictor
from dsctl_core.training.plan.plan import plan_training

FILE = Path(__file__).with_name("memory_table.json")
CARDS = (12, 16, 24, 32, 48, 80, 141)
FORMATS = ("int8", "nf4")
KINDS: dict[str, dict[str, Any]] = {"lora": {"lora_rank": 32}, "full": {"trainable_models": "dit"}}
WHOLE = 16  # bytes of a number that is trained: itself, its gradient, and two of AdamW, in float32
SIZES = ("height", "width", "num_frames", "layers")
Data = dict[str, Any]


def presets() -> list[str]:
    """Return the published presets of which all sizes are known."""
    known = [(family, each) for family in families().values() for each in family.presets if each.model_id is not None]
    return [preset.name for family, preset in known if family.weight_bytes(preset) is not None]


def signature(model: str) -> str:
    """Return what the memory of a preset depends on: its networks, the size of a picture, and what it starts from."""
    found = resolve_model(model)
    assert found.preset is not None
    configs = {name: found.family.published_config(name, found.preset.variant) for name in found.parts.components}
    networks = {name: asdict(config) for name, config in configs.items() if config is not None}
    sizes = {name: found.defaults.get(name) for name in SIZES}
    known = [found.family.name, found.parts.kind, networks, sizes, sorted(inputs_of(found))]
    return json.dumps(known, default=str, sort_keys=True)


def call_of(resolved: ResolvedModel) -> dict[str, Any]:
    """Return the arguments of a drawing at the size of the model."""
    known = {name: resolved.defaults[name] for name in (*SIZES, "cfg_scale") if name in resolved.defaults}
    picture = Image.new("RGBA" if resolved.family.decomposes else "RGB", (known["width"], known["height"]))
    shown = {name: [picture] if name == "edit_image" else picture for name in inputs_of(resolved)}
    return {"prompt": PROMPT, **known, **shown}


def predict(model: str) -> Data:
    """Return all predictions for a preset, as JSON has them; none for what its weights alone make too large."""
    found = resolve_model(model)
    assert found.preset is not None
    numbers = (found.family.weight_bytes(found.preset) or {})["dit"] // 2
    fits = {"lora": True, "full": numbers * WHOLE <= max(CARDS) * GB}
    trained = {kind: trainings(model, asked) if fits[kind] else {} for kind, asked in KINDS.items()}
    return {**trained, "infer": {held: _drawing(found) for held, found in drawings(model).items()}}


def key_of(options: TrainOptions) -> str:
    """Return the name of the prediction for `options`, which differ in levers alone."""
    training = options.training
    switches = {"recompute": training.use_gradient_checkpointing, "inputs": training.use_gradient_checkpointing_offload}
    return ",".join([name for name, on in switches.items() if on] + list(training.quantize))


def trainings(model: str, asked: dict[str, Any], cards: Sequence[int] = CARDS) -> dict[str, Any]:
    """Return the predictions that --fit asks for on `cards`, by what is recomputed and packed."""
    with tempfile.TemporaryDirectory() as folder:
        options = options_of({"model": model, "device": "cpu", "train": asked}, Path(folder))
        plan = plan_training(options, NoProgress(), offline=True)
        predictor, known = Predictor(plan, 2**50), dict[str, Prediction]()

        def look_up(levers: TrainOptions) -> Prediction:
            key = key_of(levers)
            if key not in known:
                try:
                    known[key] = predictor.predict(levers)
                except DsctlError as error:  # which is not that of a run that fits no GPU
                    raise RuntimeError(f"{model} cannot be predicted: {error}") from error
            return known[key]

        # Nothing is packed, so that no library is needed.
        with patch("dsctl_core.training.model.open.require_library", lambda _: None):
            for card in cards:
                with suppress(DsctlError):
                    choose(options, card * GB, look_up, FORMATS)
        plan.accelerator.end_training()
    return {key: {**asdict(found), "sizes": list(map(_shortened, found.sizes))} for key, found in known.items()}


def drawings(model: str) -> dict[str, DrawingMemory]:
    """Return what a drawing takes by what is packed: nothing, or the largest text encoder."""
    resolved = resolve_model(model)
    denoisers = [each.name for each in resolved.parts.denoisers]
    whole = drawing_memory(resolved, call_of(resolved), torch.bfloat16)
    encoder = max((name for name in whole.weights if name not in denoisers), key=lambda name: whole.weights[name])
    # The denoisers stay as they are, so that those of the short model do not count.
    packed = drawing_memory(resolved, call_of(resolved), torch.bfloat16, {encoder: "int8"}, DEPTH)
    weights = {**whole.weights, encoder: packed.weights[encoder]}
    moments = tuple(
        replace(moment, tensors=max(moment.tensors, other.tensors))
        for moment, other in zip(whole.moments, packed.moments, strict=True)
    )
    return {"": whole, f"{encoder}=int8": replace(whole, weights=weights, moments=moments)}


def _drawing(found: DrawingMemory) -> Data:
    moments = [[sorted(each.components), round(each.tensors)] for each in found.moments]
    weights = {name: round(size) for name, size in found.weights.items()}
    blocks = {name: _shortened(sizes) for name, sizes in found.blocks.items()}
    return {"moments": moments, "weights": weights, "blocks": blocks}


def _shortened(sizes: Sequence[int]) -> list[list[int]]:
    """Return `sizes` as pairs of a size and how often it comes in a row."""
    return [[size, len(list(same))] for size, same in groupby(sizes)]


def _whole(pairs: Sequence[Sequence[int]]) -> tuple[int, ...]:
    return tuple(size for size, count in pairs for _ in range(count))


def prediction_of(data: Data) -> Prediction:
    """Return a prediction from JSON."""
    lists = tuple(BlockList(*each) for each in data["lists"])
    return Prediction(**{**data, "sizes": tuple(map(_whole, data["sizes"])), "lists": lists})


def drawing_of(data: Data) -> DrawingMemory:
    """Return what a drawing takes from JSON."""
    moments = tuple(Moment(frozenset(names), tensors) for names, tensors in data["moments"])
    blocks = {name: _whole(pairs) for name, pairs in data["blocks"].items()}
    return DrawingMemory(moments, data["weights"], blocks)


def read() -> Data:
    """Return what is predicted so far: {"same": {preset: preset}, "predictions": {preset: ...}}."""
    return json.loads(FILE.read_text(encoding="utf-8")) if FILE.is_file() else {"same": {}, "predictions": {}}


def main() -> None:
    """Predict the presets that are named, or all that are missing, and write the file after each."""
    data, first = read(), dict[str, str]()
    for name in presets():
        data["same"][name] = first.setdefault(signature(name), name)
    named = sys.argv[1:] or [each for each in data["same"] if each not in data["predictions"]]
    for name in dict.fromkeys(data["same"][each] for each in named):
        print(name, flush=True)
        data["predictions"][name] = predict(name)
        FILE.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
