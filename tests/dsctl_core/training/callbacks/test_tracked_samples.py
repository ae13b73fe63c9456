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
IN_A_ROW = (3 * 32 + 2 * 4, 16)  # frames, with gaps between them
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


class Media:
    """Stands for the packages of trackers: each of their classes keeps what it is made of."""

    def __init__(self, *given: Any, **named: Any) -> None:
        self.given, self.named = given, named
        self.content = Path(given[0]).read_bytes() if str(given[0]).endswith(".gif") else None


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("wandb", "trackio", "swanlab"):
        module = ModuleType(name)
        module.Video = module.Image = Media  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.usefixtures("packages")
@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_wandb_and_trackio_get_the_file_of_a_clip(name: str) -> None:
    tracker = Recorder(name)
    log_samples(tracker, [CLIP, PICTURE], FILES, 2)
    (_, videos, _), (_, pictures, step) = tracker.told
    clip = videos["sample 1"]
    assert (clip.given, clip.named) == (("step-2-1.mp4",), {"format": "mp4"})
    assert (list(pictures), step) == (["sample 2"], 2)
    log_samples(tracker, [CLIP], [Path("step-2-1.webp")], 3)
    shown = tracker.told[-1][1]["sample 1"]
    picture = shown[0] if name == "wandb" else shown.given[0]
    assert picture.size == IN_A_ROW, "a file that is no video"


@pytest.mark.usefixtures("packages")
def test_swanlab_gets_a_clip_as_a_gif() -> None:
    tracker = Recorder("swanlab")
    log_samples(tracker, [CLIP, PICTURE], FILES, 2)
    (_, clips, _), (kind, pictures, _) = tracker.told
    assert clips["sample 1"].content.startswith(b"GIF8")
    assert (kind, list(pictures)) == ("pictures", ["sample 2"])


def test_comet_and_clearml_get_the_file_of_a_clip_by_their_own_functions() -> None:
    told: list[tuple[str, dict[str, Any]]] = []
    comet, clearml = Recorder("comet_ml"), Recorder("clearml")
    comet.tracker = SimpleNamespace(  # type: ignore[attr-defined]
        log_video=lambda **named: told.append(("video", named)),
        log_image=lambda picture, **named: told.append(("picture", {"size": picture.size, **named})),
    )
    reporting = SimpleNamespace(report_media=lambda **named: told.append(("media", named)))
    clearml.tracker = SimpleNamespace(get_logger=lambda: reporting)  # type: ignore[attr-defined]
    for tracker in (comet, clearml):
        log_samples(tracker, [CLIP, PICTURE], FILES, 2)
    assert told == [
        ("video", {"file": "step-2-1.mp4", "name": "sample 1", "format": "mp4", "step": 2}),
        ("picture", {"size": (48, 48), "name": "sample 2", "step": 2}),
        ("media", {"title": "sample 1", "series": "sample 1", "iteration": 2, "local_path": "step-2-1.mp4"}),
    ]
    assert [list(values) for _, values, _ in clearml.told] == [["sample 2"]]


def test_trackers_of_pictures_alone_get_the_frames_in_a_row_and_others_nothing() -> None:
    aim, unknown = Recorder("aim"), Recorder("mlflow")
    for tracker in (aim, unknown):
        log_samples(tracker, [CLIP, PICTURE], FILES, 2)
    assert aim.told[0][1]["sample 1"].size == IN_A_ROW
    assert unknown.told == []
