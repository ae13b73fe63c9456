"""Measure merging a LoRA into a large checkpoint, and downloading, beside the libraries underneath. See README.md.

`python -m benchmarks.files` prints seconds and peak memory of each side, in turns; `--merge-gigabytes` and
`--download-gigabytes` set the sizes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from benchmarks.run import REPOSITORY, finish

WIDTH = 4096  # of the square matrices that the checkpoint is made of
RANK = 32
ENDPOINTS = ("HF_ENDPOINT", "MODELSCOPE_ENDPOINT")

# Each in a process of its own: a child's peak counts what its parent had resident when it was started.
PREPARE = """
import sys
from pathlib import Path
import torch
from safetensors.torch import save_file
base, lora = map(Path, sys.argv[1:3])
width, rank, count = map(int, sys.argv[3:])
generator = torch.Generator().manual_seed(0)
base.mkdir()
one = torch.randn(width, width, generator=generator).bfloat16()
save_file({f"layers.{n}.weight": one.clone() for n in range(count)}, base / "model.safetensors")
tensors = {}
for number in range(count):
    key = f"diffusion_model.layers.{number}"
    tensors[f"{key}.lora_A.weight"] = torch.randn(rank, width, generator=generator) * 0.1
    tensors[f"{key}.lora_B.weight"] = torch.randn(width, rank, generator=generator) * 0.1
save_file(tensors, lora)
"""
COMPARE = """
import sys
from safetensors import safe_open
with safe_open(f"{sys.argv[1]}/model.safetensors", "pt") as a, safe_open(f"{sys.argv[2]}/model.safetensors", "pt") as b:
    assert set(a.keys()) == set(b.keys())
    for name in a.keys():
        assert (a.get_tensor(name) != b.get_tensor(name)).float().mean() < 0.01, name
"""
OURS_MERGE = """
import sys
from pathlib import Path
from dsctl_core.lora import read_lora
from dsctl_core.lora.merge import ScaledLora, component_shapes, matched, merge_into_weights
folder, lora, target = map(Path, sys.argv[1:])
updates = matched([ScaledLora(read_lora(lora), 0.5)], {"dit": component_shapes(folder)}, allow_partial=False)
merge_into_weights(folder, target, updates["dit"])
"""
PLAIN_MERGE = """
import sys
from pathlib import Path
from safetensors.torch import load_file, save_file
folder, lora, target = map(Path, sys.argv[1:])
weights, updates = load_file(folder / "model.safetensors"), load_file(lora)
for key, down in updates.items():
    if key.endswith("lora_A.weight"):
        name = key.removeprefix("diffusion_model.").replace("lora_A.", "")
        up = updates[key.replace("lora_A", "lora_B")]
        weights[name] = (weights[name].float() + 0.5 * up @ down).to(weights[name].dtype)
target.mkdir()
save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
"""
OURS_DOWNLOAD = "from dsctl.app import main; import sys; sys.exit(main(sys.argv[1:]))"
PLAIN_DOWNLOAD = {
    "huggingface": "import sys, huggingface_hub as h; h.snapshot_download('owner/name', local_dir=sys.argv[1])",
    "modelscope": (
        "import sys, modelscope_hub as m; m.HubApi().download_repo('owner/name', 'model', local_dir=sys.argv[1])"
    ),
}


def timed(code: str, *words: str | Path) -> tuple[float, int]:
    """Run a program; return its seconds and the most memory that it had resident, in bytes."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, words)],
        cwd=REPOSITORY,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    process.returncode, memory, _ = finish(process.pid)
    if process.returncode != 0:
        raise SystemExit(f"a side failed with exit code {process.returncode}: {code[:60]} {words}")
    return time.perf_counter() - began, memory


def report(name: str, sides: dict[str, list[tuple[float, int]]]) -> None:
    """Print the median seconds and the peak memory of both sides."""
    for side, runs in sides.items():
        seconds, memory = median(run[0] for run in runs), max(run[1] for run in runs)
        print(f"{name:22} {side:6} {seconds:8.2f} s  {memory / 1e6:8.0f} MB peak", flush=True)


def merging(gigabytes: float, rounds: int, folder: Path) -> None:
    """Compare merging with loading, adding and saving the same file, and check that both wrote the same numbers."""
    base, lora = folder / "base", folder / "lora.safetensors"
    count = max(1, round(gigabytes * 1e9 / (2 * WIDTH * WIDTH)))
    timed(PREPARE, base, lora, str(WIDTH), str(RANK), str(count))
    sides: dict[str, list[tuple[float, int]]] = {"dsctl": [], "plain": []}
    for number in range(rounds):
        for side, code in (("dsctl", OURS_MERGE), ("plain", PLAIN_MERGE)):
            sides[side].append(timed(code, base, lora, folder / f"{side}-{number}"))
        timed(COMPARE, *(folder / f"{side}-{number}" for side in sides))
        for side in sides:
            shutil.rmtree(folder / f"{side}-{number}")
    report(f"merge into {gigabytes:g} GB", sides)


def downloading(gigabytes: float, rounds: int, folder: Path) -> None:
    """Compare `dsctl download` with the hubs' own clients, from a local hub in a process of its own."""
    server = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.files", "--serve", str(gigabytes)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None and server.stdin is not None
    os.environ.update(dict.fromkeys(ENDPOINTS, server.stdout.readline().strip()))
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "DSCTL_SKIP_DOWNLOAD"):
        os.environ.pop(name, None)
    os.environ.update(HF_HUB_DISABLE_XET="1", HF_HUB_DISABLE_TELEMETRY="1", TQDM_DISABLE="1")
    os.environ.update(
        HF_HOME=str(folder / "hf"), MODELSCOPE_HOME=str(folder / "ms"), MODELSCOPE_CACHE=str(folder / "mc")
    )
    try:
        for source, plain in PLAIN_DOWNLOAD.items():
            sides: dict[str, list[tuple[float, int]]] = {"dsctl": [], "plain": []}
            for number in range(rounds):
                target = folder / f"{source}-{number}"
                words = ("download", "owner/name", "--source", source, "--local-dir", str(target / "dsctl"))
                sides["dsctl"].append(timed(OURS_DOWNLOAD, *words))
                sides["plain"].append(timed(plain, target / "plain"))
            report(f"{source}, {gigabytes:g} GB", sides)
    finally:
        server.stdin.close()
        server.wait()


def serve(gigabytes: float) -> None:
    """Be the hub, until stdin ends."""
    from tests.hub_server import local_hub

    with local_hub() as hub:
        hub.add("owner/name", {"model.safetensors": os.urandom(1 << 20) * round(gigabytes * 1e9 / (1 << 20))})
        print(hub.url, flush=True)
        sys.stdin.read()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--merge-gigabytes", type=float, default=4.0)
    parser.add_argument("--download-gigabytes", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=("merge", "download"))
    parser.add_argument("--serve", type=float, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve is not None:
        serve(given.serve)
        return
    print(json.dumps({"cores": os.cpu_count(), "date": time.strftime("%Y-%m-%d")}))
    with tempfile.TemporaryDirectory() as folder:
        if given.only != "download":
            merging(given.merge_gigabytes, given.rounds, Path(folder))
        if given.only != "merge":
            downloading(given.download_gigabytes, given.rounds, Path(folder))


if __name__ == "__main__":
    main()
