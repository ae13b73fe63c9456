"""Measure training steps of the real-size Qwen-Image transformer on one GPU: speed, memory, and what each lever does.

    python -m benchmarks.real_size                       # all variants, each in a process of its own; below 10 minutes
    python -m benchmarks.real_size --only recompute,fp8  # some of them
    python -m benchmarks.real_size --tiny --device cpu   # a tiny model, to see that it works

20 billion random weights are made on the device; nothing is downloaded. Inputs are as from a cache: latents of a
1024x1024 picture (4096 tokens) and a prompt's embeddings.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.flops import peak_flops, step_flops
from benchmarks.run import REPOSITORY

VARIANTS = {
    "recompute": "every block recomputed",
    "half": "every second block recomputed",
    "keep": "nothing recomputed",
    "compile": "every block recomputed, compiled",
    "fp8": "every block recomputed, frozen weights in float8",
}
GIB = 2**30
PUBLIC = "the public figure to beat: 1.20 s and 41.0 GiB on an H100 (every block recomputed, rank 8)"


def build_transformer(tiny: bool, device: str) -> Any:
    """Return the transformer with random weights in bfloat16, made on the device."""
    import torch
    from diffusers import QwenImageTransformer2DModel

    from dsctl_core.families.qwen_image.family import FAMILY

    before = torch.get_default_dtype()
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            return QwenImageTransformer2DModel(**(FAMILY.tiny if tiny else FAMILY.published)["dit"])
    finally:
        torch.set_default_dtype(before)


def build_module(settings: dict[str, Any]) -> Any:
    """Return the training module of `dsctl train` on that transformer, with the variant's lever applied."""
    import functools

    import torch
    from torch.utils.checkpoint import checkpoint

    from dsctl_core.families import pipeline_class
    from dsctl_core.families.qwen_image.family import FAMILY
    from dsctl_core.training.model.task_module import TaskModule

    dit, variant = build_transformer(settings["tiny"], settings["device"]), settings["variant"]
    pipe = pipeline_class(FAMILY)(
        {"dit": dit}, None, FAMILY.schedule, torch_dtype=torch.bfloat16, device=settings["device"]
    )
    module = TaskModule(
        pipe,
        "sft",
        use_gradient_checkpointing=variant in ("recompute", "compile", "fp8"),
        lora_base_model="dit",
        lora_rank=settings["rank"],
        fp8_models=["dit"] if variant == "fp8" else None,
    )
    if variant == "compile":
        dit.compile_repeated_blocks()
    if variant == "half":
        for block in dit.transformer_blocks[::2]:
            block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
    return module


def cached_row(settings: dict[str, Any], width: int) -> dict[str, Any]:
    """Return a row as a cache has it: latents of a picture and the embeddings of a prompt."""
    import torch

    from dsctl_core.cache.reader import CACHED

    side = settings["side"]
    generator = torch.Generator().manual_seed(0)
    sample = {
        "shared.input_latents": torch.randn(1, 16, side // 8, side // 8, generator=generator).bfloat16(),
        "shared.height": side,
        "shared.width": side,
        "shared.rand_device": "cpu",
        "shared.noise": None,
        "posi.prompt_embeds": torch.randn(1, settings["text_tokens"], width, generator=generator).bfloat16(),
        "posi.prompt_embeds_mask": None,
    }
    return {"_row": 0, CACHED: sample}


def measure(settings: dict[str, Any]) -> dict[str, Any]:
    """Train a few steps as `dsctl train` does, and return what they took."""
    import torch

    from dsctl_core.options.processes import ProcessCountOptions
    from dsctl_core.training.callbacks.base import TrainingHook
    from dsctl_core.training.distributed.accelerator import make_accelerator
    from dsctl_core.training.loop.loop import launch_training_task
    from dsctl_core.training.output.logger import ModelLogger

    on_gpu = settings["device"] != "cpu"
    began = time.perf_counter()
    accelerator = make_accelerator(settings["device"], "bf16", ProcessCountOptions())
    module = build_module(settings)
    dit = module.pipe.dit
    built = time.perf_counter() - began

    class Watch(TrainingHook):
        """Notes when each step has ended; after those that warm up it forgets the peak so far."""

        def __init__(self) -> None:
            self.ends: list[float] = []

        def on_training_start(self, run: Any) -> None:
            self.on_step_end(run, None)

        def on_step_end(self, run: Any, record: Any) -> None:
            if on_gpu:
                torch.cuda.synchronize()
                if run.step == settings["warm_up"]:
                    torch.cuda.reset_peak_memory_stats()
            self.ends.append(time.perf_counter())

    watch, rows = Watch(), [cached_row(settings, dit.config.joint_attention_dim)]
    with tempfile.TemporaryDirectory() as folder:
        summary = launch_training_task(
            accelerator,
            rows,
            module,
            ModelLogger(Path(folder, "run")),
            learning_rate=1e-4,
            max_steps=settings["warm_up"] + settings["steps"],
            hooks=[watch],
        )
    seconds = [b - a for a, b in zip(watch.ends, watch.ends[1:], strict=False)]
    tokens = (settings["side"] // 16) ** 2
    flops = step_flops(dit, 1, tokens, settings["text_tokens"])
    step = median(seconds[settings["warm_up"] :])
    name = torch.cuda.get_device_name() if on_gpu else "cpu"
    peak = settings["peak_tflops"] * 1e12 if settings["peak_tflops"] else peak_flops(name)
    return {
        "variant": settings["variant"],
        "device": name,
        "torch": torch.__version__,
        "parameters": sum(p.numel() for p in dit.parameters()),
        "trained": sum(p.numel() for p in module.trainable_modules()),
        "image_tokens": tokens,
        "text_tokens": settings["text_tokens"],
        "build_seconds": built,
        "first_step_seconds": seconds[0],
        "step_seconds": step,
        "all_step_seconds": seconds,
        "tokens_per_second": tokens / step,
        "model_flops": flops.model,
        "utilisation": flops.model / step / peak if peak else None,
        "allocated_gib": torch.cuda.max_memory_allocated() / GIB if on_gpu else None,
        "reserved_gib": torch.cuda.max_memory_reserved() / GIB if on_gpu else None,
        "loss": summary.final_loss,
    }


def in_its_own_process(settings: dict[str, Any], timeout: float) -> dict[str, Any]:
    """Measure a variant where neither its memory nor its compiled code meets another's."""
    command = [sys.executable, "-m", "benchmarks.real_size", "--measure", json.dumps(settings)]
    try:
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return {"variant": settings["variant"], "failed": f"not done after {timeout:.0f} s"}
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    return {"variant": settings["variant"], "failed": "out of memory" if "OutOfMemory" in last else last[:200]}


def as_markdown(results: Sequence[dict[str, Any]]) -> str:
    """Return the results as a table."""
    lines = [
        "| | s/step | tokens/s | utilisation | allocated | reserved | first step |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in results:
        name = VARIANTS[result["variant"]]
        if "failed" in result:
            lines.append(f"| {name} | {result['failed']} | | | | | |")
            continue
        share = "" if result["utilisation"] is None else f"{100 * result['utilisation']:.1f} %"
        memory = ["" if result[key] is None else f"{result[key]:.1f} GiB" for key in ("allocated_gib", "reserved_gib")]
        lines.append(
            f"| {name} | {result['step_seconds']:.3g} | {result['tokens_per_second']:.0f} | {share} "
            f"| {memory[0]} | {memory[1]} | {result['first_step_seconds']:.1f} s |"
        )
    return "\n".join(lines)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.real_size", description=__doc__.splitlines()[0])
    parser.add_argument("--only", help=f"variants, separated by commas, of {', '.join(VARIANTS)}")
    parser.add_argument("--steps", type=int, default=8, help="measured steps (default: %(default)s)")
    parser.add_argument("--warm-up", type=int, default=3, help="steps before them (default: %(default)s)")
    parser.add_argument("--rank", type=int, default=16, help="of the LoRA (default: %(default)s)")
    parser.add_argument("--side", type=int, default=1024, help="of the picture, in pixels (default: %(default)s)")
    parser.add_argument("--text-tokens", type=int, default=128, help="of the prompt (default: %(default)s)")
    parser.add_argument("--device", default="cuda", help="cuda or cpu (default: %(default)s)")
    parser.add_argument("--tiny", action="store_true", help="with the tiny model of the tests, to try the benchmark")
    parser.add_argument("--peak-tflops", type=float, help="of the GPU in dense bfloat16, where it is not known here")
    parser.add_argument("--timeout", type=float, default=180, help="seconds for a variant (default: %(default)s)")
    parser.add_argument("--json", type=Path, default=REPOSITORY / "build" / "real_size.json", help="for the numbers")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the variants one by one and print the table."""
    options = parse(arguments)
    if options.measure is not None:
        print(json.dumps(measure(json.loads(options.measure))))
        return
    wanted = options.only.split(",") if options.only else list(VARIANTS)
    if unknown := [name for name in wanted if name not in VARIANTS]:
        raise SystemExit(f"error: unknown variant {unknown[0]!r}\nhint: known: {', '.join(VARIANTS)}")
    if options.device != "cpu":
        import torch

        if not torch.cuda.is_available():
            raise SystemExit(
                "error: this needs a GPU with about 45 GiB of memory, and torch sees none\n"
                "hint: --tiny --device cpu shows on a CPU that it works"
            )
    settings = {
        name: getattr(options, name)
        for name in ("steps", "warm_up", "rank", "side", "text_tokens", "device", "tiny", "peak_tflops")
    }
    results = []
    for variant in wanted:
        results.append(in_its_own_process({**settings, "variant": variant}, options.timeout))
        print(json.dumps(results[-1]), file=sys.stderr, flush=True)
    print(as_markdown(results))
    print(f"\n{PUBLIC}")
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    if all("failed" in result for result in results):
        raise SystemExit("error: no variant could be measured")


if __name__ == "__main__":
    main()
