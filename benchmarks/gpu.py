"""Measure dsctl on one GPU: training of published models at full size with each lever, stage one, inference, numbers.

    make bench-gpu                                # at most nine minutes; run again, it goes on where it was
    python -m benchmarks.gpu --anew               # measure all again
    python -m benchmarks.gpu --tiny --device cpu  # the embedded model, to see that it works

Weights are random, made on the device; nothing is downloaded. Each case runs in a process of its own, and what it found
is written at once. The prediction of the peak is that of the dry run, made on the CPU beside the measurements.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.run import REPOSITORY

GIB = 2**30
DEADLINE = 540  # seconds for all cases
LORA: dict[str, Any] = {"lora_rank": 32}
RECOMPUTED = {**LORA, "use_gradient_checkpointing": True}

# The most important first: a run that is cut off has measured those. "encode" and "infer" are of the model alone.
FULL_SIZE: dict[str, dict[str, Any]] = {
    "numbers": {},
    "20B kept": {"model": "qwen-image", "train": LORA},
    "20B recomputed": {"model": "qwen-image", "train": RECOMPUTED},
    "20B half recomputed": {"model": "qwen-image", "train": {**RECOMPUTED, "gradient_checkpointing_blocks": 30}},
    "20B compiled": {"model": "qwen-image", "train": {**LORA, "compile": True}},
    "20B int8": {"model": "qwen-image", "train": {**RECOMPUTED, "quantize": "dit=int8"}},
    "20B offloaded": {"model": "qwen-image", "train": {**RECOMPUTED, "offload_blocks": 40}},
    "20B encode": {"model": "qwen-image", "encode": True},
    "20B infer": {"model": "qwen-image", "infer": True},
    "4B kept": {"model": "flux2-klein-base-4b", "train": LORA},
    "6B kept": {"model": "z-image", "train": LORA},
    "1.3B video recomputed": {"model": "wan2.1-t2v-1.3b", "train": RECOMPUTED},
    "14B video recomputed": {"model": "wan2.1-t2v-14b", "train": RECOMPUTED},
    "20B float8": {"model": "qwen-image", "train": {**RECOMPUTED, "quantize": "dit=float8"}},
    "20B fp8": {"model": "qwen-image", "train": {**RECOMPUTED, "fp8_models": "dit"}},
    "4B compiled": {"model": "flux2-klein-base-4b", "train": {**LORA, "compile": True}},
}
TINY: dict[str, dict[str, Any]] = {
    "numbers": {},
    "tiny kept": {"model": "tiny", "train": LORA},
    "tiny int8": {"model": "tiny", "train": {**RECOMPUTED, "quantize": "dit=int8"}},
    "tiny encode": {"model": "tiny", "encode": True},
    "tiny infer": {"model": "tiny", "infer": True},
}


def in_its_own_process(case: dict[str, Any], mode: str, timeout: float) -> dict[str, Any]:
    """Return what `mode` of the case, "measure" or "predict", finds, or how it failed."""
    command = [sys.executable, "-m", "benchmarks.gpu_case", mode, json.dumps(case)]
    try:
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return {"failed": f"not done after {timeout:.0f} s"}
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    return {"failed": "out of memory" if "OutOfMemory" in last else last[:200]}


def as_markdown(results: dict[str, dict[str, Any]]) -> str:
    """Return the results as a table."""
    lines = ["| | s | TFLOP/s | of peak | peak | predicted | off by |", "|---|---|---|---|---|---|---|"]
    for name, found in results.items():
        if "failed" in found:
            lines.append(f"| {name} | {found['failed']} | | | | | |")
            continue
        shown = [f"{found['seconds']:.3g}" if "seconds" in found else ""]
        shown.append(f"{found['tflops']:.1f}" if found.get("tflops") else "")
        shown.append(f"{100 * found['of_peak']:.0f} %" if found.get("of_peak") else "")
        peak, predicted = found.get("peak"), found.get("predicted")
        shown += [f"{each / GIB:.1f} GiB" if each else "" for each in (peak, predicted)]
        shown.append(f"{100 * (predicted / peak - 1):+.0f} %" if peak and predicted else found.get("note", ""))
        lines.append(f"| {name} | {' | '.join(shown)} |")
    return "\n".join(lines)


def measure_all(cases: dict[str, dict[str, Any]], options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Measure the cases that are not in the file of results yet, as long as there is time; write each at once."""
    file: Path = options.json
    known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() and not options.anew else {}
    results = {name: known[name] for name in cases if name in known and "failed" not in known[name]}
    end, common = time.monotonic() + options.deadline, {"device": options.device, "steps": options.steps}
    todo = {name: {**common, **case} for name, case in cases.items() if name not in results}
    with ThreadPoolExecutor(options.predictors) as pool:
        predictions: dict[str, Future[dict[str, Any]]] = {
            name: pool.submit(in_its_own_process, case, "predict", options.deadline)
            for name, case in todo.items()
            if "train" in case
        }
        for name, case in todo.items():
            left = end - time.monotonic()
            if left < options.least:
                print(f"{name}: no time is left; run it again to go on", file=sys.stderr)
                continue
            results[name] = in_its_own_process(case, "measure", left)
            if name in predictions and "failed" not in results[name]:
                results[name] |= predictions[name].result()
            print(json.dumps({name: results[name]}), file=sys.stderr, flush=True)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        for waiting in predictions.values():
            waiting.cancel()
    return {name: results[name] for name in cases if name in results}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="cases, separated by commas")
    parser.add_argument("--device", default="cuda", help="cuda or cpu (default: %(default)s)")
    parser.add_argument("--tiny", action="store_true", help="with the embedded model, to try the benchmark")
    parser.add_argument("--anew", action="store_true", help="measure what the file of results has already")
    parser.add_argument("--steps", type=int, default=5, help="measured steps of a training (default: %(default)s)")
    parser.add_argument("--deadline", type=float, default=DEADLINE, help="seconds for all (default: %(default)s)")
    parser.add_argument("--least", type=float, default=20, help="seconds that a case needs (default: %(default)s)")
    parser.add_argument("--predictors", type=int, default=4, help="dry runs at a time (default: %(default)s)")
    parser.add_argument("--json", type=Path, default=REPOSITORY / "build" / "bench_gpu.json", help="for the results")
    options = parser.parse_args(arguments)
    cases = TINY if options.tiny else FULL_SIZE
    if options.only:
        wanted = options.only.split(",")
        if unknown := [name for name in wanted if name not in cases]:
            raise SystemExit(f"error: unknown case {unknown[0]!r}\nhint: known: {', '.join(cases)}")
        cases = {name: cases[name] for name in wanted}
    if options.device != "cpu":
        import torch

        if not torch.cuda.is_available():
            raise SystemExit(
                "error: this needs a GPU, and torch sees none\nhint: --tiny --device cpu shows on a CPU that it works"
            )
    results = measure_all(cases, options)
    print(as_markdown(results))
    if not results or all("failed" in found for found in results.values()):
        raise SystemExit("error: no case could be measured")


if __name__ == "__main__":
    main()
