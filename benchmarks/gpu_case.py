"""Measure or predict one case of `benchmarks.gpu`, in a process of its own; prints what was found as JSON."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.flops import peak_flops
from benchmarks.model_data import PROMPT, write_data
from dsctl_core.families import pipeline_class
from dsctl_core.losses import find_loss
from dsctl_core.options import TrainOptions
from dsctl_core.progress import NoProgress
from dsctl_core.training.callbacks.base import TrainingHook
from dsctl_core.training.dry_run.estimate import Estimate
from dsctl_core.training.dry_run.simulated import SimulatedModel, largest
from dsctl_core.training.plan.plan import TrainingPlan, plan_training

WARM_UP = 2


def options_of(case: dict[str, Any], folder: Path, **more: Any) -> TrainOptions:
    """Write a dataset of one row at the size of the model into `folder`; return the options of its training."""
    asked = {"device": case["device"], "mixed_precision": "bf16", "output_path": folder / "out", "max_steps": 2}
    asked |= {"model": case["model"], **write_data(case["model"], folder)}
    return TrainOptions(**{**asked, **case.get("train", {"lora_rank": 32}), **more})


def random_pipeline(plan: TrainingPlan, names: list[str]) -> Any:
    """Return the pipeline with the components `names` in the plan's dtype on its device: random, or embedded ones."""
    resolved, device = plan.model, plan.accelerator.device
    if resolved.preset is not None and resolved.preset.model_id is None:
        return resolved.load_pipeline(torch_dtype=plan.dtype, device=device, only=names)
    simulated, models = SimulatedModel(resolved, names), {}
    usual = torch.get_default_dtype()
    torch.set_default_dtype(plan.dtype)
    try:
        with torch.device(device):
            for component in resolved.family.components:
                if component.name in names and component.name in simulated.loaded:
                    model = simulated._empty(component)
                    models[component.name] = model.to(device, plan.dtype).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(usual)
    about: dict[str, Any] = {"torch_dtype": plan.dtype, "device": device, "parts": resolved.parts}
    pipe = pipeline_class(resolved.family)(models, simulated._readers(), resolved.schedule, **about).eval()
    pipe.scheduler.set_timesteps(training=True)
    return pipe


def random_entry(plan: TrainingPlan) -> dict[str, Any]:
    """Return what stage one makes of the row, with random numbers: its shapes are those of a dry run."""
    estimate = Estimate(plan, depth=1)
    pipe = estimate.model.pipeline(estimate.simulation, plan.dtype, lambda _: plan.dtype, plan.stages.idle)
    encoded = estimate._encode_largest(pipe)
    generator = torch.Generator().manual_seed(0)

    def real(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return type(value)(real(each) for each in value)
        if not isinstance(value, torch.Tensor):
            return value
        if value.dtype.is_floating_point:
            return torch.randn(value.shape, generator=generator).to(value.dtype)
        return torch.ones(value.shape, dtype=value.dtype)

    return {name: real(value) for name, value in encoded.entry.items()}


class Watch(TrainingHook):
    """Notes when each step has ended, and forgets the peak of those that warm up."""

    def __init__(self, on_gpu: bool) -> None:
        self.on_gpu, self.ends = on_gpu, list[float]()

    def on_training_start(self, run: Any) -> None:
        """Note the beginning of the first step."""
        self.on_step_end(run, None)

    def on_step_end(self, run: Any, record: Any) -> None:
        """Wait for the device, and note the time."""
        if self.on_gpu:
            torch.cuda.synchronize()
            if run.step == WARM_UP:
                torch.cuda.reset_peak_memory_stats()
        self.ends.append(time.perf_counter())


def measure_training(case: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Train a few steps by the loop of `dsctl train` on the entry of a cache."""
    from torch.utils.flop_counter import FlopCounterMode

    from dsctl_core.cache.reader import CACHED
    from dsctl_core.memory.options import MemorySettings
    from dsctl_core.training.loop.loop import launch_training_task
    from dsctl_core.training.output.logger import ModelLogger
    from dsctl_core.training.plan.module import task_module

    plan = plan_training(options_of(case, folder), NoProgress(), offline=True)
    device, memory = plan.accelerator.device, plan.options.memory
    entry, began = random_entry(plan), time.perf_counter()
    pipe = random_pipeline(plan, list(plan.stages.second_components))
    module = task_module(plan, pipe, packed_on=device)
    settings = MemorySettings(memory.gradient_checkpointing_blocks, memory.offload_blocks, memory.compile)
    settings.apply(list(pipe.iteration_modules().values()), device, pipe.denoiser_modules())
    pipe.to(device)
    built, on_gpu = time.perf_counter() - began, device.type == "cuda"
    rows = [{CACHED: entry, "_row": 0}]
    flops = None
    if not memory.compile:
        sample = {name: each.to(device) if isinstance(each, torch.Tensor) else each for name, each in entry.items()}
        with FlopCounterMode(display=False) as counter, plan.accelerator.autocast():
            module({CACHED: sample, "seed": 0}).backward()
        flops = counter.get_total_flops()
        for parameter in module.trainable_modules():
            parameter.grad = None
    watch, steps = Watch(on_gpu), case["steps"] + WARM_UP
    summary = launch_training_task(
        *(plan.accelerator, rows, module, ModelLogger(folder / "run")),
        max_steps=steps,
        optimizer=plan.optimizer,
        hooks=[watch],
    )
    seconds = [later - earlier for earlier, later in zip(watch.ends, watch.ends[1:], strict=False)]
    step, name = median(seconds[WARM_UP:]), torch.cuda.get_device_name() if on_gpu else "cpu"
    most, tflops = peak_flops(name), None if flops is None else flops / step / 1e12
    return {
        "device": name,
        "seconds": step,
        "first_seconds": seconds[0],
        "build_seconds": built,
        "tflops": tflops,
        "of_peak": tflops * 1e12 / most if tflops and most else None,
        "peak": torch.cuda.max_memory_reserved() if on_gpu else None,
        "allocated": torch.cuda.max_memory_allocated() if on_gpu else None,
        "loss": summary.final_loss,
    }


def predict(case: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the peak that the dry run predicts for the case, on short models."""
    from dsctl_core.training.fit.predict import Predictor

    train = {name: value for name, value in case["train"].items() if name not in ("offload_blocks", "compile")}
    options = options_of({**case, "device": "cpu", "train": train}, folder)
    plan = plan_training(options, NoProgress(), offline=True)
    found = Predictor(plan, 2**50).predict(plan.options)
    moved = found.saved_by_offload(case["train"].get("offload_blocks", 0))
    return {"predicted": found.training - moved}


def measure_encoding(case: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Encode the row as stage one does, three times."""
    from dsctl_core.stages import split

    plan = plan_training(options_of(case, folder), NoProgress(), offline=True)
    pipe = random_pipeline(plan, list(plan.stages.first_components))
    row, seconds = dict(plan.source[largest(plan.source)]), []
    with torch.no_grad():
        for _ in range(3):
            began = time.perf_counter()
            split.run(plan.stages.split.once, pipe, find_loss(plan.task).inputs_from_row(pipe, row, ()))
            _wait(pipe.device)
            seconds.append(time.perf_counter() - began)
    return {"seconds": min(seconds), "peak": _peak(pipe.device)}


def measure_inference(case: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Draw a picture in two and in four steps; the difference is what two steps take."""
    plan = plan_training(options_of(case, folder), NoProgress(), offline=True)
    names = [component.name for component in plan.model.family.components]
    pipe, seconds = random_pipeline(plan, names), {}
    for steps in (2, 2, 4):
        began = time.perf_counter()
        pipe(PROMPT, seed=0, num_inference_steps=steps, **{n: plan.model.defaults[n] for n in ("height", "width")})
        _wait(pipe.device)
        seconds[steps] = time.perf_counter() - began
    step = (seconds[4] - seconds[2]) / 2
    return {"seconds": step, "whole": seconds[4], "peak": _peak(pipe.device), "note": "a denoising step"}


def measure_numbers(case: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Compare loss and gradient of the embedded model in bfloat16 on the device with those in float32 on the CPU."""
    from dsctl_core.training.plan.module import build_module

    found: dict[str, tuple[float, torch.Tensor]] = {}
    levers: dict[str, dict[str, Any]] = {
        "float32": {"device": "cpu", "mixed_precision": "no"},
        "bf16": {},
        "recomputed": {"use_gradient_checkpointing": True},
        "int8": {"quantize": "dit=int8"},
    }
    if case["device"] != "cpu":
        levers |= {"offloaded": {"offload_blocks": 2}, "compiled": {"compile": True}}
    for name, lever in levers.items():
        plan = plan_training(options_of({**case, "model": "tiny"}, folder, cache=False, **lever), NoProgress())
        module = build_module(plan, NoProgress())
        with plan.accelerator.autocast():
            loss = module({**plan.source[0], "seed": 7})
        loss.backward()
        gradients = [each.grad.float().cpu().flatten() for each in module.trainable_modules() if each.grad is not None]
        found[name] = float(loss.detach()), torch.cat(gradients)
        plan.accelerator.end_training()
    exact, direction = found.pop("float32")
    compared = {
        name: {
            "loss_off": abs(loss / exact - 1),
            "gradient_cosine": float(torch.nn.functional.cosine_similarity(gradient, direction, dim=0)),
        }
        for name, (loss, gradient) in found.items()
    }
    return {"numbers": compared, "note": f"loss off by {max(each['loss_off'] for each in compared.values()):.1e}"}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _peak(device: torch.device) -> int | None:
    return torch.cuda.max_memory_reserved() if device.type == "cuda" else None


def run(mode: str, case: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return what "measure" or "predict" of the case finds; `folder` is for its files."""
    kinds = {"train": measure_training, "encode": measure_encoding, "infer": measure_inference}
    measure = next((kinds[kind] for kind in kinds if kind in case), measure_numbers)
    return (predict if mode == "predict" else measure)(case, folder)


def main() -> None:
    """Do what the command line says: `measure` or `predict`, and the case as JSON."""
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(run(sys.argv[1], json.loads(sys.argv[2]), Path(folder))))


if __name__ == "__main__":
    main()
