"""Every clip of a video as a row, and folders of frames as clips: the right frames, exact places, one line of error."""

from __future__ import annotations

import json
import re
from pathlib import Path

import av
import pytest
from PIL import Image

from dsctl_core.cache.reader import CachedDataset
from dsctl_core.commands.cache import make_cache
from dsctl_core.commands.dataset import validate
from dsctl_core.commands.train import train
from dsctl_core.data import LoadVideo, UnifiedDataset, check_dataset, video_file
from dsctl_core.data.build import build_dataset
from dsctl_core.data.clip_rows import ClipIndex
from dsctl_core.data.frame_rule import FrameRule
from dsctl_core.errors import DsctlError
from dsctl_core.families import load_family
from dsctl_core.options import CacheOptions, DatasetValidateOptions, TrainOptions
from dsctl_core.options.data import DataOptions
from dsctl_core.training.callbacks.validation import hold_out
from tests.dsctl_core.data.test_video import CODECS, STEP, numbers, write
from tests.tiny_models import write_tiny_wan


def write_grouped(path: Path, frames: int = 20) -> Path:
    """Write a video with a key frame in every sixth frame and frames that refer to later ones between them."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream(CODECS[path.suffix[1:]], rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.gop_size = 6
        if CODECS[path.suffix[1:]] == "libx264":
            stream.options = {"x264-params": "open-gop=1:bframes=2:keyint=6:min-keyint=6:scenecut=0"}
        for number in range(frames):
            file.mux(stream.encode(av.VideoFrame.from_image(Image.new("RGB", (64, 48), (number * STEP,) * 3))))
        file.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("suffix", [suffix for suffix in CODECS if suffix != "gif"])
def test_every_clip_of_a_video_has_the_frames_that_follow_those_of_the_one_before(tmp_path, suffix):
    path = write_grouped(tmp_path / f"a.{suffix}")
    whole = LoadVideo(20, 1, 0)(path)
    loads = [LoadVideo(5, extraction="every", clip=clip) for clip in range(4)]
    assert loads[0].clips(path) == 4
    clips = [load(path) for load in loads]
    assert [numbers(clip) for clip in clips] == [list(range(first, first + 5)) for first in (0, 5, 10, 15)]
    for clip, first in zip(clips, (0, 5, 10, 15), strict=True):
        expected = whole[first : first + 5]
        assert [each.tobytes() for each in clip] == [each.tobytes() for each in expected], "as from the start"
    with pytest.raises(DsctlError, match=r"a\.\w+: the video has 4 clips of 5 frames, so there is no clip 5"):
        LoadVideo(5, extraction="every", clip=4)(path)


def test_a_late_clip_is_decoded_from_the_key_frame_before_it(tmp_path, monkeypatch):
    path, decoded = write_grouped(tmp_path / "a.mp4"), []
    turned = video_file._upright
    monkeypatch.setattr(video_file, "_upright", lambda frame: (decoded.append(frame.pts), turned(frame))[1])
    begun = []
    started = video_file.Stamps.start_for
    monkeypatch.setattr(
        video_file.Stamps, "start_for", lambda self, first: (begun.append(started(self, first)), begun[-1])[1]
    )
    assert numbers(LoadVideo(5, extraction="every", clip=3)(path)) == [15, 16, 17, 18, 19]
    assert begun[-1] is not None
    assert begun[-1][0] == 12
    assert len(decoded) == 5


def test_clips_are_counted_at_the_rate_and_a_short_video_gives_one_or_none():
    times = [number / 10 for number in range(23)]
    rule = FrameRule(5, fps=5, extraction="every")
    assert rule.clips(times, 2.3) == 2
    assert rule.of_clip(1).pick(times, 2.3) == [10, 12, 14, 16, 18]
    assert FrameRule(81, short="shorten", extraction="every").clips(times, 2.3) == 1
    assert FrameRule(81, short="shorten", extraction="every").pick(times, 2.3) == list(range(21))
    with pytest.raises(DsctlError, match="has 23 frames, but 81 are needed"):
        FrameRule(81, extraction="every").clips(times, 2.3)


def test_the_rows_of_a_million_clips_take_the_memory_of_their_videos():
    index = ClipIndex([400_000, 1, 600_000])
    assert (len(index), len(index.starts)) == (1_000_001, 4)
    assert [(index.row_of(n), index.clip_of(n)) for n in (0, 399_999, 400_000, 400_001, 1_000_000)] == [
        (0, 0),
        (0, 399_999),
        (1, 0),
        (2, 0),
        (2, 599_999),
    ]


def dataset_of(folder: Path, **settings: object) -> UnifiedDataset:
    family = load_family("wan")
    values = {"dataset_base_path": folder, "data_file_keys": ("video",), "num_frames": 5, "clip_extraction": "every"}
    return build_dataset(DataOptions.resolved({**values, **settings}, {*values, *settings}), family, {})


def write_table(folder: Path, *rows: str, columns: str = "video,prompt") -> Path:
    (folder / "metadata.csv").write_text("\n".join([columns, *rows]) + "\n", encoding="utf-8")
    return folder


def test_each_clip_is_a_row_with_the_caption_of_its_video_and_a_picture_is_one(tmp_path):
    write(tmp_path / "long.mp4", frames=18)
    write(tmp_path / "short.mkv", frames=9)
    Image.new("RGB", (64, 48)).save(tmp_path / "still.png")
    write_table(tmp_path, "long.mp4,grey", "short.mkv,short", "still.png,still")
    dataset = dataset_of(tmp_path)
    assert len(dataset) == 5
    assert [dataset[n]["prompt"] for n in range(5)] == ["grey"] * 3 + ["short", "still"]
    assert [numbers(dataset[n]["video"])[0] for n in range(4)] == [0, 5, 10, 0]
    assert {len(dataset[n]["video"]) for n in range(4)} == {5}
    assert dataset.location(2) == f"{tmp_path / 'metadata.csv'} row 1 (line 2) clip 3"
    assert dataset.location(3) == f"{tmp_path / 'metadata.csv'} row 2 (line 3)"
    assert "5 clips of 3 videos" in dataset.notes()
    check_dataset(dataset)
    trained, held = hold_out(dataset, 0.4)
    assert {dataset.origin(n) for n in trained.numbers} & {dataset.origin(n) for n in held.numbers} == set()
    assert len(trained.numbers) + len(held.numbers) == 5


def test_a_frame_of_its_own_and_a_bad_video_are_one_line_of_their_row(tmp_path):
    write(tmp_path / "long.mp4", frames=18)
    (tmp_path / "empty.mp4").touch()
    Image.new("RGB", (64, 48)).save(tmp_path / "first.png")
    write_table(tmp_path, "long.mp4,first.png,a", "empty.mp4,,b", columns="video,input_image,prompt")
    columns = {"data_file_keys": ("video", "input_image")}
    with pytest.raises(
        DsctlError, match=r"row 1 .* clip 1, input_image 'first.png': the row has an input_image, and its"
    ):
        check_dataset(dataset_of(tmp_path, **columns))
    options = {"path": tmp_path, "num_frames": 5, "model": "wan2.2-ti2v-5b", "clip_extraction": "every", **columns}
    found = validate(DatasetValidateOptions(**options)).found
    messages = [problem.message for problem in found.problems if problem.level == "error"]
    assert len(messages) == 2
    assert (
        "row 1 (line 2), input_image 'first.png': the row has an input_image, and its video gives 3 clips"
        in messages[0]
    )
    assert "empty.mp4 is empty (0 bytes)" in messages[1]


def write_frames(folder: Path, count: int = 12, size: tuple[int, int] = (64, 48)) -> Path:
    """Write the frames 0.png, 1.png, ..., 10.png, ..., each a grey of its own."""
    folder.mkdir()
    for number in range(count):
        Image.new("RGB", size, (number * STEP,) * 3).save(folder / f"{number}.png")
    return folder


def test_a_folder_of_frames_is_a_clip_in_the_order_of_the_numbers_in_its_names(tmp_path):
    write_frames(tmp_path / "walk")
    (tmp_path / "walk" / ".DS_Store").touch()
    write_table(tmp_path, "walk,a,", "walk,b,4", columns="video,prompt,fps")
    plain = dataset_of(tmp_path, num_frames=9, clip_extraction="head")
    assert numbers(plain[0]["video"]) == list(range(9))
    assert plain.preview(0, "video") == (64, 48, 9)
    rated = dataset_of(tmp_path, num_frames=5, clip_extraction="head", fps=2.0)
    assert numbers(rated[0]["video"]) == [0, 1, 2, 3, 4], "without a rate of its own each frame is taken"
    assert numbers(rated[1]["video"]) == [0, 2, 4, 6, 8], "4 frames a second at 2"
    every = dataset_of(tmp_path)
    assert [numbers(every[n]["video"]) for n in range(len(every))] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]] * 2
    options = DatasetValidateOptions(
        path=tmp_path, data_file_keys="video", num_frames=5, model="wan2.1-t2v-1.3b", clip_extraction="every"
    )
    result = validate(options)
    assert result.found.count("error") == 0
    assert "frames  5 frames in each clip, and every clip of each video" in result.found.notes
    assert "clips  4 of 1 video" in result.found.notes
    assert "1 of 1 video is a folder of frames" in result.found.notes
    assert result.summary["buckets"] == {"64x48x5": 4}


BAD_FOLDERS = {
    "empty": (lambda folder: folder.mkdir(), "empty is a folder without frames"),
    "sizes": (
        lambda folder: Image.new("RGB", (64, 64)).save(write_frames(folder) / "3.png"),
        r"sizes/3.png is 64x64, but 0.png is 64x48",
    ),
    "notes": (lambda folder: (write_frames(folder) / "notes.txt").touch(), r"notes.txt is not a picture, and all that"),
    "deep": (lambda folder: (write_frames(folder) / "more.png").mkdir(), r"more.png is not a picture, and all that"),
    "torn": (
        lambda folder: (write_frames(folder) / "3.png").write_bytes((folder / "2.png").read_bytes()[:60]),
        r"torn/3.png is damaged or cut off",
    ),
    "few": (lambda folder: write_frames(folder, 3), "the clip has 3 frames, but 5 are needed"),
    "rate": (write_frames, "the row has fps 'fast', which is no frame rate"),
}


def test_a_folder_that_cannot_be_a_clip_is_one_line_in_validation_and_before_training(tmp_path):
    for name, (make, _) in BAD_FOLDERS.items():
        make(tmp_path / name)
    write_table(
        tmp_path, *(f"{name},a,{'fast' if name == 'rate' else ''}" for name in BAD_FOLDERS), columns="video,prompt,fps"
    )
    options = {"path": tmp_path, "data_file_keys": "video", "num_frames": 5, "model": "wan2.1-t2v-1.3b"}
    found = validate(DatasetValidateOptions(**options)).found
    dataset = dataset_of(tmp_path, clip_extraction="head")
    for number, (_, expected) in enumerate(BAD_FOLDERS.values()):
        messages = [each.message for each in found.problems if each.row == number + 1 and each.level == "error"]
        assert len(messages) == 1, messages
        assert "\n" not in messages[0]
        assert re.search(expected, messages[0])
        with pytest.raises(DsctlError, match=rf"row {number + 1} .*{expected}"):
            dataset.preview(number, "video")
        with pytest.raises(DsctlError, match=rf"row {number + 1} .*{expected}"):
            dataset.row(number)


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_every_clip_is_an_entry_of_a_cache_and_training_on_clips_is_resumed_exactly(tmp_path):
    write_tiny_wan(tmp_path / "model", kind="t2v")
    data = tmp_path / "data"
    data.mkdir()
    write(data / "long.mp4", frames=18)
    write_frames(data / "walk", 10)
    write_table(data, "long.mp4,grey", "walk,walk")
    settings = {
        "model": str(tmp_path / "model"),
        "dataset_base_path": data,
        "data_file_keys": ("video",),
        "num_frames": 5,
        "clip_extraction": "every",
        "mixed_precision": "no",
        "device": "cpu",
    }
    make_cache(CacheOptions(**settings, output_path=tmp_path / "cache"))
    cached = CachedDataset(tmp_path / "cache")
    assert [entry.row for entry in cached.entries] == [0, 1, 2, 3, 4]
    assert len({entry.key for entry in cached.entries}) == 5
    assert [cached.origin(row) for row in range(5)] == [(0, 0)] * 3 + [(0, 1)] * 2
    whole = dataset_of(data)
    held = [{entry.row for entry in hold_out(cached, 0.5)[1].entries}, set(hold_out(whole, 0.5)[1].numbers)]
    assert held[0] == held[1]
    assert held[0] in ({0, 1, 2}, {3, 4})
    other = {
        "from_cache": tmp_path / "cache",
        "clip_extraction": "head",
        "lora_rank": 2,
        "output_path": tmp_path / "no",
    }
    with pytest.raises(DsctlError, match="made with the clip extraction every, but this run has head"):
        train(TrainOptions(**other))
    more = {"lora_rank": 2, "seed": 3, "save_steps": 3}
    train(TrainOptions(**settings, **more, cache=False, max_steps=6, output_path=tmp_path / "whole"))
    stored = {"from_cache": tmp_path / "cache", "mixed_precision": "no", "device": "cpu", "max_steps": 6}
    train(TrainOptions(**stored, **more, output_path=tmp_path / "stored"))
    assert len(losses(tmp_path / "whole")) == 6
    assert losses(tmp_path / "whole") == losses(tmp_path / "stored")
    train(TrainOptions(**settings, **more, cache=False, max_steps=3, output_path=tmp_path / "part"))
    resumed = {**settings, **more, "cache": False, "max_steps": 6, "resume": "latest"}
    train(TrainOptions(**resumed, output_path=tmp_path / "part"))
    assert losses(tmp_path / "part") == losses(tmp_path / "whole")
    (data / "walk" / "9.png").write_bytes((data / "walk" / "0.png").read_bytes())
    with pytest.raises(DsctlError, match="cannot be resumed from, for the results would change"):
        train(TrainOptions(**{**resumed, "max_steps": 8}, output_path=tmp_path / "part"))
