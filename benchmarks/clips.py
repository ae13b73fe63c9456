"""Measure decoding clips beside plain PyAV, and the bytes of a clip in a cache beside its bfloat16 latents.

    python -m benchmarks.clips                       # prints the results and writes build/benchmark_clips.json
    python -m benchmarks.clips --clips 40 --seconds 2 --rounds 3 --only decode
    python -m benchmarks.clips --only decode --cpu   # counts CPU time: on a machine that does other work too

Both sides decode all frames of the same files to RGB images in the same process and take turns, each going first in
every other round. The cache is made from a random model with the latents of Wan 2.1 and tiny text embeddings.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import av
from PIL import Image

from benchmarks.data import REPOSITORY, in_turns
from benchmarks.run import describe_machine
from dsctl_core.data import LoadVideo
from dsctl_core.media.clip import Clip
from dsctl_core.media.clip_file import write_clip

FPS = 24
DISTINCT = 20  # files; more clips than these are the same files again
CAPTION = "a red fox runs through the snow to the left, seen from the side, in the evening"


def write_clips(folder: Path, count: int, frames: int, size: tuple[int, int]) -> list[Path]:
    """Write H.264 files of `frames` frames: a large picture with fine grain that moves, as a camera does."""
    paths = []
    for number in range(count):
        draw = random.Random(number)
        width, height = size
        shapes = Image.frombytes("RGB", (12, 12), draw.randbytes(432)).resize((2 * width, 2 * height))
        grain = Image.effect_noise(shapes.size, 24).convert("RGB")
        scene = Image.blend(shapes, grain, 0.2)
        corners = [(round(width * n / frames), round(height * n / frames)) for n in range(frames)]
        shown = tuple(scene.crop((left, top, left + width, top + height)) for left, top in corners)
        paths.append(folder / f"{number}.mp4")
        write_clip(paths[-1], Clip(shown, FPS), {})
    return paths


def measure_decoding(paths: list[Path], clips: int, rounds: int, clock: Callable[[], float]) -> dict[str, Any]:
    """Compare reading `clips` clips as training does with decoding them by PyAV alone, in seconds of `clock`."""
    files = list(itertools.islice(itertools.cycle(paths), clips))
    load, counts = LoadVideo(None, time_division_factor=1, time_division_remainder=0), {"dsctl": 0, "PyAV": 0}

    def ours() -> None:
        counts["dsctl"] = sum(len(load(path)) for path in files)

    def plain() -> None:
        counts["PyAV"] = 0
        for path in files:
            with av.open(str(path)) as container:
                container.streams.video[0].thread_type = "AUTO"
                counts["PyAV"] += len([frame.to_image() for frame in container.decode(video=0)])

    seconds = in_turns({"dsctl": ours, "PyAV": plain}, rounds, clock)
    assert counts["dsctl"] == counts["PyAV"] > 0
    ratios = [beside / own for own, beside in zip(seconds["dsctl"], seconds["PyAV"], strict=True)]
    return {
        "clips": clips,
        "frames": counts["dsctl"],
        "clips_per_second": clips / median(seconds["dsctl"]),
        "share_of_pyav_speed": median(ratios),
        "seconds": seconds,
    }


def measure_cache(folder: Path, frames: int, size: tuple[int, int]) -> dict[str, Any]:
    """Return the bytes of a clip in a cache, and those of its latents and real text tokens in bfloat16."""
    from dsctl_core.commands.cache import make_cache
    from dsctl_core.families import load_family
    from dsctl_core.options import CacheOptions
    from tests.tiny_models import write_tiny_wan

    write_tiny_wan(folder / "model")
    (folder / "data").mkdir()
    write_clips(folder / "data", 1, frames, size)
    (folder / "data" / "0.txt").write_text(CAPTION, encoding="utf-8")
    settings = {"num_frames": frames, "width": size[0], "height": size[1], "mixed_precision": "bf16", "device": "cpu"}
    source = {"model": str(folder / "model"), "dataset_base_path": folder / "data", "output_path": folder / "cache"}
    make_cache(CacheOptions(**source, **settings))
    stored = sum(path.stat().st_size for path in (folder / "cache").rglob("*") if path.is_file())
    latents = 2 * 16 * ((frames - 1) // 4 + 1) * (size[0] // 8) * (size[1] // 8)
    tokens = tokens_of(folder / "model")
    text = 2 * tokens * load_family("wan").tiny["dit"]["text_dim"]
    return {"cache_bytes": stored, "latent_bytes": latents, "text_bytes": text, "ratio": stored / (latents + text)}


def tokens_of(model: Path) -> int:
    """Return the number of tokens of the caption."""
    from transformers import AutoTokenizer

    return len(AutoTokenizer.from_pretrained(str(model / "tokenizer"), local_files_only=True)(CAPTION).input_ids)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=10, help="length of a clip that is decoded")
    parser.add_argument("--frames", type=int, default=81, help="of the clip that is cached, 4n + 1")
    parser.add_argument("--width", type=int, default=832)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cpu", action="store_true", help="count CPU time: on a machine that does other work too")
    parser.add_argument("--only", choices=["decode", "cache"], help="measure only this")
    parser.add_argument("--output", type=Path, default=REPOSITORY / "build" / "benchmark_clips.json")
    options = parser.parse_args()
    size = (options.width, options.height)
    clock = time.process_time if options.cpu else time.perf_counter
    facts: dict[str, Any] = {"machine": describe_machine(None), "av": version("av"), "size": size}
    with tempfile.TemporaryDirectory() as folder:
        if options.only != "cache":
            (Path(folder) / "clips").mkdir()
            count = min(options.clips, DISTINCT)
            paths = write_clips(Path(folder) / "clips", count, round(options.seconds * FPS), size)
            facts["decode"] = measured = measure_decoding(paths, options.clips, options.rounds, clock)
            print(
                f"decoding: {measured['clips_per_second']:.2f} clips of {options.seconds:g} s a "
                f"{'CPU second' if options.cpu else 'second'}, "
                f"{measured['share_of_pyav_speed']:.3f} of plain PyAV"
            )
        if options.only != "decode":
            facts["cache"] = measured = measure_cache(Path(folder), options.frames, size)
            print(
                f"cache: {measured['cache_bytes']:,} bytes for a clip of {options.frames} frames, "
                f"{measured['ratio']:.4f} of its latents and text tokens in bfloat16"
            )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
