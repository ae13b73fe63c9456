"""Reading ahead: each file is decoded once for all that is made of it, and what waits is bounded."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from dsctl_core.cache.reader import CachedDataset
from dsctl_core.commands.cache import make_cache
from dsctl_core.data import DataError, LoadVideo
from dsctl_core.options import CacheOptions
from dsctl_core.stages import encode, read_ahead
from dsctl_core.stages.plan_rows import Unread
from tests.dsctl_core.data.test_video import write
from tests.tiny_models import write_tiny_wan


def write_videos(folder: Path, count: int, frames: int) -> Path:
    """Write videos, each of its own grey, with a caption for each."""
    folder.mkdir()
    for number in range(count):
        write(folder / f"{number}.mp4", frames=frames, size=(32 if number % 2 else 48, 32))
        with (folder / f"{number}.mp4").open("ab") as file:
            file.write((8 + number).to_bytes(4, "big") + b"free" + bytes(number))  # so that no two files are equal
        (folder / f"{number}.txt").write_text(f"number {number}")
    return folder


def cached(model: Path, data: Path, out: Path, **settings: Any) -> CachedDataset:
    options = {"num_frames": 5, "mixed_precision": "no", "device": "cpu", **settings}
    make_cache(CacheOptions(model=str(model), dataset_base_path=data, output_path=out, **options))
    return CachedDataset(out)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_video_is_decoded_once_for_its_latents_its_condition_and_its_first_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_size: int
) -> None:
    write_tiny_wan(tmp_path / "model", kind="i2v")
    data, decoded = write_videos(tmp_path / "data", 6, 9), Counter[str]()
    whole = LoadVideo.__call__

    def counted(self: LoadVideo, value: Any) -> Any:
        decoded[Path(value).name] += 1
        return whole(self, value)

    with monkeypatch.context() as patched:
        patched.setattr(LoadVideo, "__call__", counted)
        shared = cached(tmp_path / "model", data, tmp_path / "shared", batch_size=batch_size)
    assert decoded == {f"{number}.mp4": 1 for number in range(6)}
    monkeypatch.setattr(encode, "passes_of", lambda works: [[work] for work in works])
    apart = cached(tmp_path / "model", data, tmp_path / "apart", batch_size=batch_size)
    assert [entry.key for entry in shared.entries] == [entry.key for entry in apart.entries]
    assert shared.shard_names == apart.shard_names, "the files are equal, byte for byte"
    names = {"shared.input_latents", "shared.condition", "shared.image_embeds"}
    values = shared.sample(shared.entries[0])
    assert all(isinstance(values[name], torch.Tensor) for name in names)


class Alive:
    """Counts the pictures that are in memory."""

    def __init__(self) -> None:
        self.now, self.most = set[int](), 0

    def add(self, picture: Image.Image) -> None:
        if id(picture) not in self.now:
            self.now.add(id(picture))
            weakref.finalize(picture, self.now.discard, id(picture))
        self.most = max(self.most, len(self.now))


def most_alive(model: Path, data: Path, out: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> int:
    """Return the most frames, decoded or resized, that were in memory at once while a cache was made."""
    alive = Alive()

    def processed(self: LoadVideo, frames: Iterator[Image.Image]) -> list[Any]:
        made = []
        for frame in frames:
            alive.add(frame)
            made.append(self.frame_processor(frame) if self.frame_processor is not None else frame)
            alive.add(made[-1])
        return made

    with monkeypatch.context() as patched:
        patched.setattr(LoadVideo, "_processed", processed)
        cached(model, data, out, **settings)
    return alive.most


def test_the_frames_in_memory_do_not_grow_with_the_length_of_a_video_nor_with_the_number_of_clips(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiny_wan(tmp_path / "model", kind="t2v")
    kinds = {"few": (7, 6, "head"), "long": (7, 30, "head"), "many": (14, 6, "head"), "every": (1, 40, "every")}
    alive = {}
    for name, (count, frames, extraction) in kinds.items():
        data = write_videos(tmp_path / name, count, frames)
        alive[name] = most_alive(
            tmp_path / "model", data, tmp_path / f"{name}-cache", monkeypatch, clip_extraction=extraction
        )
    waiting = 2 + 2 * encode.READERS
    assert alive["few"] > 5
    # The frames of the rows that wait, of those that threads read, and of the one that is encoded; and those in between
    # a frame and its resized copy.
    assert max(alive.values()) <= 5 * (waiting + encode.READERS + 1) + 2 * encode.READERS, alive


def test_a_file_that_cannot_be_decoded_is_left_out_of_all_that_is_made_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiny_wan(tmp_path / "model", kind="i2v")
    data, whole = write_videos(tmp_path / "data", 3, 9), LoadVideo.__call__

    def broken(self: LoadVideo, value: Any) -> Any:
        if Path(value).name == "1.mp4":
            raise DataError(f"{value} is damaged in the middle", hint="copy it again")
        return whole(self, value)

    monkeypatch.setattr(LoadVideo, "__call__", broken)
    found = cached(tmp_path / "model", data, tmp_path / "cache", on_bad_sample="skip")
    assert [entry.row for entry in found.entries] == [0, 2]
    assert [(each["row"], "damaged in the middle" in each["problem"]) for each in found.manifest.skipped] == [(1, True)]


def test_only_what_reads_files_is_done_together() -> None:
    group, job = read_ahead.EncodeGroup((), frozenset(), frozenset()), read_ahead.Job
    text = read_ahead.Work(group, [[job("a", 0, {"posi.prompt": ["red"]})]])
    frames = read_ahead.Work(group, [[job("b", 0, {"shared.input_video": [[Unread((8, 8), "x")]]})]])
    first = read_ahead.Work(group, [[job("c", 0, {"shared.input_image": [Unread((8, 8), "x")]})]])
    assert read_ahead.passes_of([text, frames, first]) == [[frames, first], [text]]
    assert read_ahead.passes_of([text]) == [[text]]
