"""Samples in trackers: clips move where the tracker takes clips, and are pictures of their frames elsewhere."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from accelerate.tracking import TensorBoardTracker
from PIL import Image

from dsctl_core.media.clip import Clip
from dsctl_core.training.callbacks.tracked_samples import log_samples
from tests.dsctl_core.training.callbacks.test_trackers import events

CLIP = Clip(tuple(Image.new("RGB", (32, 16), colour) for colour in ("red", "lime", "blue")), 60)
PICTURE = Image.new("RGB", (48, 48))
FILES = [Path("step-2-1.mp4"), Path("step-2-2.png")]


class Recorder:
    """A tracker called `name` that keeps what it is told."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.told: list[tuple[str, Any, Any]] = []

    def log(self, values: Any, step: int) -> None:
        self.told.append(("values", values, step))

    def log_images(self, values: Any, step: int) -> None:
        self.told.append(("pictures", values, step))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_has_a_clip_as_a_gif_that_plays(tmp_path: Path) -> None:
    import io

    tracker = TensorBoardTracker("run", tmp_path)
    tracker.start()
    log_samples(tracker, [CLIP, PICTURE], FILES, 2)
    tracker.finish()
    found = events(tmp_path / "run")
    (clip,), (picture,) = found.Images("sample 1"), found.Images("sample 2")
    with Image.open(io.BytesIO(clip.encoded_image_string)) as image:
        assert (image.format, image.size, image.n_frames) == ("GIF", (32, 16), 3)  # type: ignore[attr-defined]
    assert (clip.step, clip.width, clip.height, picture.step, picture.width) == (2, 32, 16, 2, 48)


def test_wandb_gets_the_file_of_a_clip_and_others_its_frames_in_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("wandb")
    module.Video = lambda path, format: SimpleNamespace(path=path, format=format)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    wandb, swanlab, other, unknown = (Recorder(name) for name in ("wandb", "swanlab", "aim", "mlflow"))
    for tracker in (wandb, swanlab, other, unknown):
        log_samples(tracker, [CLIP, PICTURE], FILES, 2)
    (_, videos, _), (_, pictures, step) = wandb.told
    assert vars(videos["sample 1"]) == {"path": "step-2-1.mp4", "format": "mp4"}
    assert (list(pictures), step) == (["sample 2"], 2)
    (_, shown, _) = swanlab.told[0]
    assert [shown[name][0].size for name in sorted(shown)] == [(3 * 32 + 2 * 4, 16), (48, 48)]
    assert other.told[0][1]["sample 1"].size == (3 * 32 + 2 * 4, 16)
    assert unknown.told == []
    log_samples(wandb, [CLIP], [Path("step-2-1.webp")], 3)
    assert wandb.told[-1][0] == "pictures"
