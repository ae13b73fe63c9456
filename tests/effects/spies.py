"""Replaces the long parts of the commands: each writes down what it is given instead of doing it.

Everything before them is the real thing, and of a training also the loss and the gradient of the first batch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dsctl_core.cache.manifest import Manifest
from dsctl_core.data.sampler import BatchPlan
from dsctl_core.families import load_family, pipeline_class
from dsctl_core.families.resolve import ResolvedModel
from dsctl_core.hub.remote import Listing, RemoteFile
from dsctl_core.hub.upload import Uploaded
from dsctl_core.stages.encode import CacheResult, encode_dataset
from dsctl_core.training.loop.batches import MicroBatches, batch_loader
from dsctl_core.training.loop.loop import TrainingSummary
from dsctl_core.training.loop.reading import Reading
from dsctl_core.training.optim.lr_schedule import LRSchedule, factors
from tests.effects.described import described, tensor_digest

Records = list[tuple[str, Any]]
STEPS = 40  # of the learning rate's course


def install(patch: pytest.MonkeyPatch) -> Records:
    """Put the spies in place for as long as `patch` lasts, and return the list that they write to."""
    records: Records = []

    def note(what: str, *values: Any) -> None:
        records.append((what, described(values)))

    _keep_loaded_models(patch)
    _trainings(patch, note)
    _pictures(patch, note)
    _captions(patch, note)
    _hubs(patch, note)
    _servers(patch, note)
    return records


def _trainings(patch: pytest.MonkeyPatch, note: Callable[..., None]) -> None:
    really_encode = encode_dataset

    def train(accelerator: Any, dataset: Any, module: Any, logger: Any, **settings: Any) -> TrainingSummary:
        schedule = settings.pop("lr_scheduler")
        course = None
        if isinstance(schedule, LRSchedule):
            rate = factors(schedule.options, settings["max_steps"] or STEPS, 1e-3)
            course = [rate(step) for step in range(settings["max_steps"] or STEPS)]
        facts = (accelerator.mixed_precision, accelerator.gradient_accumulation_steps, accelerator.ddp_handler)
        note("training", dataset, module, logger, settings, course, facts)
        note("first batch", *_first_step(dataset, module, settings))
        return TrainingSummary(1, 0.0, [Path("step-1.safetensors")])

    def encode(cache: Path, dataset: Any, encoder: Any, how: Any, progress: Any) -> CacheResult:
        if cache.name == "cache":  # a training's own: it is trained from
            return really_encode(cache, dataset, encoder, how, progress)
        recipe = encoder.recipe
        kept = ("family", "task", "trainable", "once", "every_step", "components", "dtype", "extra_inputs")
        rows = [dataset.row(number) for number in dataset.numbers]
        note("encoding", cache, rows, dataset, {name: getattr(recipe, name) for name in kept}, how)
        return CacheResult(Manifest(recipe, {"entries": 1, "parts": 1, "skipped": 0}, SIZES, {}, ""), 1, 0, 0.0)

    def memory(settings: Any, *_: Any, **__: Any) -> str:
        note("memory", settings)
        return "native"

    def estimate(plan: Any, **how: Any) -> Any:
        note("dry run", plan.options.processes.num_processes, how)
        raise SystemExit(0)

    patch.setattr("dsctl_core.commands.train.launch_training_task", train)
    patch.setattr("dsctl_core.training.plan.encode.encode_dataset", encode)
    patch.setattr("dsctl_core.memory.options.MemorySettings.apply", memory)
    patch.setattr("dsctl_core.training.dry_run.estimate.estimate", estimate)
    patch.setattr(
        "dsctl_core.training.distributed.launch.run_in_processes",
        lambda module, words, *, processes, config, cpu, environment: note("launch", processes, config, cpu),
    )


SIZES = {"shards": 1, "tensors": 1}


def _first_step(dataset: Any, module: Any, settings: dict[str, Any]) -> tuple[Any, ...]:
    """Return the loss of the first batch, and the gradient of each trained weight."""
    size = settings["batch_size"]
    rounds = MicroBatches(BatchPlan(len(dataset), size, settings["seed"], settings["buckets"], settings["blocks"]))
    loaded = next(
        iter(batch_loader(dataset, rounds, settings["seed"], Reading(), torch.device("cpu"), replace_bad=False))
    )
    rows = [each.sample for each in loaded]
    torch.manual_seed(0)
    loss = module(rows[0] if size == 1 else rows)
    loss.backward()
    gradients = [tensor_digest(each.grad) for each in module.trainable_modules() if each.grad is not None]
    return loss, gradients


def _servers(patch: pytest.MonkeyPatch, note: Callable[..., None]) -> None:
    patch.setattr("uvicorn.Server.run", lambda server, sockets: note("serving", sockets[0].getsockname()))


def _pictures(patch: pytest.MonkeyPatch, note: Callable[..., None]) -> None:
    kind = pipeline_class(load_family("qwen-image"))
    draw, write = kind.__call__, _real("dsctl_core.commands.infer", "write_made")

    def call(pipe: Any, *args: Any, progress_bar_cmd: Any = None, **inputs: Any) -> Any:
        note("drawing", pipe.torch_dtype, pipe.readers, args, inputs)
        return draw(pipe, *args, **inputs)

    def keep(path: Path, picture: Any, about: dict[str, Any]) -> Any:
        note("picture", path, picture)
        return write(path, picture, about)

    patch.setattr(kind, "__call__", call)
    patch.setattr("dsctl_core.commands.infer.write_made", keep)


def _captions(patch: pytest.MonkeyPatch, note: Callable[..., None]) -> None:
    load = _real("dsctl_core.commands.caption", "load_describer")

    def loading(options: Any, device: Any, dtype: Any) -> Any:
        note("captioner", device, dtype)
        return load(options, device, dtype)

    def describe(describer: Any, shown: Any) -> Any:
        note("shown", [[picture.tobytes() for picture in each.pictures] for each in shown])
        return really_describe(describer, shown)

    kind = _real("dsctl_core.commands.caption_model", "Describer")
    really_describe = kind.describe
    patch.setattr(kind, "describe", describe)
    patch.setattr("dsctl_core.commands.caption.load_describer", loading)


def _real(module: str, name: str) -> Any:
    import importlib

    return getattr(importlib.import_module(module), name)


class StubHub:
    """A hub with one repository of two files."""

    def __init__(self, note: Callable[..., None], source: str, token: str | None) -> None:
        note("hub", source, token)
        self.note = note

    def list_files(self, repo: str, repo_type: str, revision: str | None) -> Listing:
        """Return the files of the repository."""
        self.note("listing", repo, repo_type, revision)
        return Listing("0" * 40, (RemoteFile("a.json", 1), RemoteFile("b.safetensors", 2)))


def _hubs(patch: pytest.MonkeyPatch, note: Callable[..., None]) -> None:
    class Fetched:
        new_files, new_bytes = 1, 1

    def fetch(hub: Any, repo: str, revision: str, files: Any, folder: Path, **how: Any) -> Any:
        note("fetch", repo, revision, files, folder, {name: each for name, each in how.items() if name != "progress"})
        return Fetched()

    def put(hub: Any, repo: str, files: Any, *, private: bool, revision: str | None, progress: Any) -> Uploaded:
        note("put", repo, files, private, revision)
        return Uploaded("https://hub/repo", [], 0)

    for command in ("download", "upload"):
        patch.setattr(f"dsctl_core.commands.{command}.open_hub", lambda source, token: StubHub(note, source, token))
        patch.setattr(f"dsctl_core.commands.{command}.skip_download", lambda: False)
    patch.setattr("dsctl_core.commands.download.fetch", fetch)
    patch.setattr("dsctl_core.commands.upload.upload_to_hub", put)


def _keep_loaded_models(patch: pytest.MonkeyPatch) -> None:
    """Load each model once, and hand out copies."""
    load, loaded = ResolvedModel.load_pipeline, {}

    def load_copy(resolved: ResolvedModel, **settings: Any) -> Any:
        if resolved.side_networks:
            return load(resolved, **settings)
        key = str((resolved.label, described(resolved.model_configs), described(resolved.reader_configs), settings))
        if key not in loaded:
            loaded[key] = load(resolved, **settings)
        pipe = loaded[key]
        return copy.deepcopy(pipe, {id(pipe.readers): pipe.readers})

    patch.setattr(ResolvedModel, "load_pipeline", load_copy)
