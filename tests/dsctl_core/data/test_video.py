"""Video: exactly the frames asked for, by time stamp, from every container; cut-off and short clips are named."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import pytest
from PIL import Image

from dsctl_core.commands.dataset import validate
from dsctl_core.data import ImageCropAndResize, LoadGIF, LoadVideo, UnifiedDataset, video_file
from dsctl_core.data.frame_rule import FrameRule
from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.options import DatasetValidateOptions

CODECS = {"mp4": "libx264", "mov": "libx264", "mkv": "libx264", "webm": "libvpx-vp9", "avi": "mpeg4", "gif": "gif"}
CODECS |= {"flv": "flv", "3gp": "libx264", "m4v": "libx264"}
STEP = 12  # by how many grey levels a frame is brighter than the one before


def write(path: Path, frames: int = 20, size: tuple[int, int] = (64, 48), **container: str) -> Path:
    """Write a video at 10 frames a second, each frame a grey of its own."""
    with av.open(str(path), "w", options=container) as file:
        stream = file.add_stream(CODECS[path.suffix[1:]], rate=10)
        stream.width, stream.height = size
        stream.pix_fmt = "rgb8" if path.suffix == ".gif" else "yuv420p"
        for number in range(frames):
            frame = av.VideoFrame.from_image(Image.new("RGB", size, (number * STEP,) * 3))
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


def numbers(frames: list[Image.Image]) -> list[int]:
    return [round(frame.getpixel((20, 20))[0] / STEP) for frame in frames]


@pytest.mark.parametrize("suffix", [suffix for suffix in CODECS if suffix != "gif"])
def test_every_container_gives_the_frames_in_order(tmp_path, suffix):
    path = write(tmp_path / f"a.{suffix}")
    assert numbers(LoadVideo(17)(path)) == list(range(17))
    assert LoadVideo(17).preview(path) == (64, 48, 17)
    assert LoadVideo(17)(path)[0].mode == "RGB"


def test_a_rate_takes_what_is_on_screen_at_each_moment(tmp_path):
    path = write(tmp_path / "a.mp4")
    assert numbers(LoadVideo(5, fps=5)(path)) == [0, 2, 4, 6, 8]
    assert numbers(LoadVideo(9, fps=20)(path)) == [0, 0, 1, 1, 2, 2, 3, 3, 4]
    assert numbers(LoadVideo(5, fps=4)(path)) == [0, 2, 5, 7, 10]
    assert LoadVideo(9, fps=20).preview(path) == (64, 48, 9)


def test_time_stamps_count_where_the_pace_changes():
    times = [0.0, 0.1, 0.2, 1.0, 1.5]
    assert FrameRule(5, fps=2).pick(times, end=3.0) == [0, 2, 3, 4, 4]
    assert FrameRule(None, fps=1, time_division_factor=1).pick(times, end=3.0) == [0, 3, 4]


@pytest.mark.parametrize(("count", "rounded"), [(1, 1), (4, 1), (5, 5), (20, 17), (81, 81)])
def test_the_number_of_frames_follows_the_rule_of_the_model(count, rounded):
    assert FrameRule(81).rounded(count) == rounded
    assert FrameRule(None).pick([n / 10 for n in range(count)], end=count / 10) == list(range(rounded))


def test_a_number_of_frames_that_is_not_of_the_rule_is_refused():
    with pytest.raises(UsageError, match=r"80 frames is not 4 \* n \+ 1") as caught:
        LoadVideo(80)
    assert caught.value.hint == "the nearest counts are 77 and 81"


@pytest.mark.parametrize("load", [lambda clip, path: clip(path), lambda clip, path: clip.preview(path)])
def test_a_clip_that_is_too_short_is_refused_or_shortened_never_stretched(tmp_path, load):
    path = write(tmp_path / "a.mp4", frames=7)
    with pytest.raises(DsctlError, match=r"a.mp4: the clip has 7 frames, but 9 are needed") as caught:
        load(LoadVideo(9), path)
    assert "--short-clips shorten" in caught.value.hint
    with pytest.raises(DsctlError, match="has 3 frames at 5 frames a second, but 5 are needed"):
        load(LoadVideo(5, fps=5), path)
    assert numbers(LoadVideo(9, short="shorten")(path)) == [0, 1, 2, 3, 4]
    assert LoadVideo(9, short="shorten").preview(path) == (64, 48, 5)


def test_a_video_of_one_frame_is_too_short_for_a_model_that_takes_more(tmp_path):
    path = write(tmp_path / "a.mp4", frames=1)
    with pytest.raises(DsctlError, match="the clip has 1 frame, but 5 are needed"):
        LoadVideo(5)(path)
    with pytest.raises(DsctlError, match="the clip has 1 frame, fewer than the model's minimum"):
        LoadVideo(8, 8, 0, short="shorten")(path)
    assert len(LoadVideo(1)(path)) == 1


@pytest.mark.parametrize("suffix", CODECS)
@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_a_video_that_is_cut_off_is_named_by_loading_and_by_the_preview(tmp_path, suffix, share):
    path = write(tmp_path / f"a.{suffix}")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    for read in (LoadVideo(None, short="shorten"), LoadVideo(None, short="shorten").preview):
        with pytest.raises(DsctlError, match=rf"a.{suffix} (is cut off|is not a video, or is|is damaged)") as caught:
            read(path)
        assert "again" in caught.value.hint


def test_a_video_whose_index_comes_first_says_how_much_is_left_of_it(tmp_path):
    path = write(tmp_path / "a.mp4", movflags="faststart")
    path.write_bytes(path.read_bytes()[:-150])
    with pytest.raises(DsctlError, match=r"a.mp4 is cut off: it ends after 1\d of 20 frames"):
        LoadVideo(5)(path)


@pytest.mark.parametrize(
    ("data", "problem"),
    [(b"", "is empty"), (b"not a video at all" * 9, "is not a video"), (None, "does not exist")],
)
def test_what_is_no_video_is_named(tmp_path, data, problem):
    path = tmp_path / "a.mp4"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(DsctlError, match=rf"a.mp4 {problem}") as caught:
        LoadVideo(1)(path)
    assert caught.value.hint


def write_sound(path: Path) -> Path:
    with av.open(str(path), "w") as file:
        stream = file.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame(format="s16", layout="mono", samples=800)
        frame.sample_rate = 8000
        file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


def test_sound_alone_is_no_video(tmp_path):
    path = write_sound(tmp_path / "a.mkv")
    with pytest.raises(DsctlError, match=r"a.mkv has no video stream"):
        LoadVideo(1)(path)


def turn(path: Path) -> Path:
    """Write into the header of a video that it is shown turned by a quarter."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40  # the matrix of a version 0 header: one quarter turn
    matrix = [0, 0x10000, 0, -0x10000, 0, 0, 0, 0, 0x40000000]
    data[at : at + 36] = b"".join(value.to_bytes(4, "big", signed=True) for value in matrix)
    path.write_bytes(data)
    return path


def test_a_phone_s_video_is_turned_upright(tmp_path):
    path = turn(write(tmp_path / "a.mp4", frames=2, size=(64, 48)))
    assert LoadVideo(1)(path)[0].size == (48, 64)
    assert LoadVideo(1).preview(path) == (48, 64, 1)


def test_an_animated_gif_gives_its_frames_on_white(tmp_path):
    frames = [Image.new("RGBA", (32, 32), (0, 0, 0, 0)) for _ in range(3)]
    for frame, colour in zip(frames, ("red", "lime", "blue"), strict=True):
        frame.paste(colour, (0, 0, 16, 32))
    path = tmp_path / "a.gif"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=200, disposal=2)
    read = LoadGIF(3, time_division_factor=1)
    assert [frame.getpixel((5, 5)) for frame in read(path)] == [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    assert [frame.getpixel((25, 5)) for frame in read(path)] == [(255, 255, 255)] * 3
    assert read.preview(path) == (32, 32, 3)
    assert len(LoadGIF(5, fps=10)(path)) == 5
    with pytest.raises(DsctlError, match="the clip has 3 frames, but 5 are needed"):
        LoadGIF(5)(path)


def test_the_default_operator_reads_videos_gifs_and_pictures(tmp_path):
    write(tmp_path / "a.mp4", size=(70, 50))
    write(tmp_path / "b.gif", size=(70, 50))
    Image.new("RGB", (70, 50)).save(tmp_path / "c.png")
    operator = UnifiedDataset.default_video_operator(tmp_path, num_frames=5)
    for name, count in (("a.mp4", 5), ("b.gif", 5), ("c.png", 1)):
        assert [frame.size for frame in operator(name)] == [(64, 48)] * count
    assert operator.preview("a.mp4") == operator.preview("b.gif") == (64, 48, 5)
    assert len(operator(["a.mp4", "a.mp4"])) == 2
    with pytest.raises(DsctlError, match="the picture is 70x50 pixels, but both sides must have at least 64"):
        LoadVideo(5, frame_processor=ImageCropAndResize(height_division_factor=64, width_division_factor=64)).preview(
            tmp_path / "a.mp4"
        )


def test_a_picture_column_that_names_a_video_is_refused_by_that_name(tmp_path):
    write(tmp_path / "a.mp4")
    with pytest.raises(DsctlError, match=r"a.mp4 is a video, not a picture"):
        UnifiedDataset.default_image_operator(tmp_path)("a.mp4")


def test_frames_can_be_spread_over_all_of_a_video_by_their_times(tmp_path):
    path = write(tmp_path / "a.mp4", frames=21)
    spread = LoadVideo(5, extraction="uniform")
    assert numbers(spread(path)) == [0, 5, 10, 15, 20]
    assert spread.preview(path) == (64, 48, 5)
    assert FrameRule(5, extraction="uniform").pick([0.0, 0.1, 0.2, 0.3, 3.6, 4.0], end=4.1) == [0, 3, 3, 3, 5]
    assert FrameRule(1, extraction="uniform").pick([0.0, 0.1], end=0.2) == [0]
    with pytest.raises(DsctlError, match="has 21 frames, but 25 are needed"):
        LoadVideo(25, extraction="uniform")(path)


def test_a_video_is_decoded_once_and_not_beyond_the_last_frame_that_is_taken(tmp_path, monkeypatch):
    path, decoded = write(tmp_path / "a.mp4", frames=20), []
    monkeypatch.setattr(video_file, "_upright", lambda frame: (decoded.append(frame.pts), frame.to_image())[1])
    assert len(LoadVideo(5)(path)) == len(decoded) == 5


def write_uneven(path: Path) -> Path:
    """Write a video that shows its frames for 0.1, 0.1, 0.8, 0.1, 0.1, ... seconds."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for number in range(12):
            frame = av.VideoFrame.from_image(Image.new("RGB", (64, 48), (number * STEP,) * 3))
            frame.pts, frame.time_base = number * 100 + (700 if number > 2 else 0), Fraction(1, 1000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


# A file of a dataset, and what `validate` says of it: (width, height, frames), or the one problem.
KINDS = {
    "good.mp4": (write, (64, 48, 9)),
    "turned.mp4": (lambda path: turn(write(path)), (48, 64, 9)),
    "uneven.mkv": (write_uneven, (64, 48, 9)),
    "damaged.mp4": (lambda path: path.write_bytes(write(path).read_bytes()[:900]), "is not a video, or is damaged"),
    "cut.mkv": (lambda path: path.write_bytes(write(path).read_bytes()[:-600]), "is cut off: it ends after"),
    "empty.mp4": (lambda path: path.touch(), "is empty"),
    "text.mp4": (lambda path: path.write_text("x" * 99), "is not a video, or is damaged"),
    "sound.mkv": (write_sound, "has no video stream"),
    "one.mp4": (lambda path: write(path, frames=1), "the clip has 1 frame, but 9 are needed"),
    "few.mp4": (lambda path: write(path, frames=8), "the clip has 8 frames, but 9 are needed"),
    "small.mp4": (lambda path: write(path, size=(12, 12)), "both sides must have at least 16"),
    "huge.mp4": (lambda path: write(path, frames=1, size=(2048, 1024)), "has frames of 2048x1024, more than 2000000"),
    "stream.mpg": (lambda path: path.write_bytes(b"\0\0\1\xba"), "does not say where it ends"),
}


def test_validate_says_one_line_of_each_video_that_cannot_be_used(tmp_path, monkeypatch):
    for name, (make, _) in KINDS.items():
        make(tmp_path / name)
    table = "".join(f"{name},a\n" for name in KINDS)
    (tmp_path / "metadata.csv").write_text(f"video,prompt\n{table}", encoding="utf-8")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2_000_000)
    values = {"path": tmp_path, "data_file_keys": "video", "num_frames": 9, "model": "wan2.1-t2v-1.3b", "workers": 1}
    found = validate(DatasetValidateOptions(**values)).found
    for number, (name, (_, expected)) in enumerate(KINDS.items()):
        problems = [each.message for each in found.problems if each.row == number + 1 and each.level == "error"]
        if isinstance(expected, str):
            assert len(problems) == 1, name
            assert expected in problems[0]
            assert "\n" not in problems[0]
        else:
            assert (problems, found.samples[number].sizes) == ([], [expected])
    assert "frames  9 frames from the beginning of each video" in found.notes


def test_a_video_in_8k_is_scaled_frame_by_frame(tmp_path):
    path = write(tmp_path / "a.avi", frames=1, size=(7680, 4320))
    load = LoadVideo(1, frame_processor=ImageCropAndResize(32, 64))
    assert load.preview(path) == (64, 32, 1)
    assert [frame.size for frame in load(path)] == [(64, 32)]
