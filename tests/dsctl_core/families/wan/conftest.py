"""Tiny random Wan models of every kind, loaded by this project and by diffusers, once for each test process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from dsctl_core.families.resolve import resolve_model
from tests.tiny_models import WAN_KINDS, write_tiny_wan

SHIFT = 3.0  # of the tiny models
KINDS = tuple(WAN_KINDS)
FROM_IMAGE = tuple(kind for kind in KINDS if kind.startswith(("i2v", "flf2v")))
FROM_TEXT = ("t2v", "t2v-a14b")
SMALL = {"width": 64, "height": 32}  # of the clips of a dataset
SIZE = {"height": 32, "width": 96, "num_frames": 9}  # 4x12 latents and 2x6 patches; 3 latent frames


@dataclass
class Pair:
    """One model, loaded by both: `ours`, and the official pipeline, diffusers', whose steps are Euler's in both.

    `unipc` is the scheduler that the model was saved with.
    """

    kind: str
    folder: Path
    ours: Any
    official: Any
    unipc: Any

    def from_image(self) -> Any:
        """The official pipeline for clips that begin with an image."""
        from diffusers import WanImageToVideoPipeline

        parts = {name: getattr(self.official, name, None) for name in ("image_encoder", "image_processor")}
        shared = ("tokenizer", "text_encoder", "vae", "scheduler", "transformer", "transformer_2")
        parts |= {name: getattr(self.official, name) for name in shared}
        settings = {name: self.official.config[name] for name in ("boundary_ratio", "expand_timesteps")}
        made = WanImageToVideoPipeline(**parts, **settings)
        made.set_progress_bar_config(disable=True)
        return made


class Pairs:
    """The pairs by kind, each loaded when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made: dict[str, Pair] = {}

    def __getitem__(self, kind: str) -> Pair:
        if kind not in self.made:
            self.made[kind] = load_pair(kind, self.folder / kind)
        self.made[kind].ours.scheduler.set_timesteps()
        return self.made[kind]


def load_pair(kind: str, folder: Path) -> Pair:
    """Write the tiny model of `kind` and load it twice."""
    return pair_in(kind, write_tiny_wan(folder, kind=kind))


def pair_in(kind: str, folder: Path) -> Pair:
    """Load the model in `folder` twice, in float32; diffusers' steps are Euler's on our grid."""
    from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler

    class Euler(FlowMatchEulerDiscreteScheduler):
        """Euler steps from even levels before the shift, which diffusers' pipelines for Wan cannot be told."""

        def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:  # type: ignore[override]
            sigmas = np.linspace(1, 1 / num_inference_steps, num_inference_steps)
            super().set_timesteps(sigmas=sigmas.tolist(), device=device)

    official: Any = DiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    unipc, official.scheduler, ours = official.scheduler, Euler(shift=SHIFT), load(folder)
    official.set_progress_bar_config(disable=True)
    ours.solver = "euler"
    return Pair(kind, folder, ours, official, unipc)


def load(folder: Path, **settings: Any) -> Any:
    """Load a model in float32 on the CPU."""
    return resolve_model(str(folder)).load_pipeline(torch_dtype=torch.float32, device="cpu", **settings)


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    return Pairs(tmp_path_factory.mktemp("tiny-wan"))


def noisy(seed: int = 0, width: int = SIZE["width"], height: int = SIZE["height"]) -> Image.Image:
    """A picture with something in it."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def clip(seed: int = 0, frames: int = SIZE["num_frames"], **sides: int) -> list[Image.Image]:
    """A clip of different frames."""
    return [noisy(100 * seed + number, **sides) for number in range(frames)]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def write_video(path: Path, frames: list[Image.Image]) -> None:
    """Write an mp4 of `frames`, 16 a second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=16)
        stream.width, stream.height, stream.pix_fmt = *frames[0].size, "yuv420p"
        for frame in frames:
            for packet in stream.encode(av.VideoFrame.from_ndarray(np.array(frame.convert("RGB")), format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def write_clips(folder: Path) -> Path:
    """Two mp4 of 9 frames and a gif of 6, of 64x32, with captions beside them."""
    folder.mkdir()
    for number in range(2):
        write_video(folder / f"{number}.mp4", clip(number, 9, **SMALL))
    first, *others = clip(7, 6, **SMALL)
    first.save(folder / "2.gif", save_all=True, append_images=others, duration=60)
    for number, caption in enumerate(("a red fox", "two blue birds in a tree", "a gif")):
        (folder / f"{number}.txt").write_text(caption)
    return folder
