"""Files of clips: they hold the frames at their pace, in the form that browsers play, and what they were made of."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.files.png import write_png
from dsctl_core.media.clip import Clip
from dsctl_core.media.clip_file import about_clip, check_clip_file, durations_of, write_clip
from dsctl_core.media.made_file import DRAWN, SAMPLE, about_made

ABOUT = {"prompt": "a caf\u00e9 \u732b <b>", "seed": 7, "dsctl_version": "1"}
COLOURS = ((255, 0, 0), (0, 160, 0), (20, 30, 250), (200, 180, 30), (90, 90, 90))


def clip(fps: float = 16, frames: int = 5) -> Clip:
    """Frames of one colour each."""
    return Clip(tuple(Image.new("RGB", (64, 48), COLOURS[number % 5]) for number in range(frames)), fps)


def shown(path: Path) -> tuple[list[tuple[int, ...]], float]:
    """Return the colour in the middle of each frame, and the length of the clip in seconds."""
    if path.suffix == ".mp4":
        with av.open(str(path)) as file:
            pictures = [frame.to_image() for frame in file.decode(video=0)]
            stream = file.streams.video[0]
            length = float(stream.duration * stream.time_base)
    else:
        pictures, length = [], 0.0
        with Image.open(path) as image:
            for number in range(image.n_frames):  # type: ignore[attr-defined]
                image.seek(number)
                pictures.append(image.convert("RGB"))
                length += image.info["duration"] / 1000
    return [picture.getpixel((30, 20)) for picture in pictures], length


WRITE = """
import sys
from pathlib import Path
import numpy as np
from PIL import Image
from dsctl_core.media.clip import Clip
from dsctl_core.media.clip_file import write_clip
coarse = Image.fromarray(np.random.default_rng(1).integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((128, 96))
frames = tuple(coarse.crop((2 * number, number, 2 * number + 96, number + 64)) for number in range(9))
for suffix in (".mp4", ".gif", ".webp"):
    write_clip(Path(sys.argv[1] + suffix), Clip(frames, 16), {})
"""


def test_the_same_frames_make_the_same_file_whatever_memory_held_before(tmp_path: Path) -> None:
    for fill in ("90", "165"):  # what malloc of the GNU C library writes into all that is allocated (mallopt(3))
        command = [sys.executable, "-c", WRITE, str(tmp_path / fill)]
        subprocess.run(command, check=True, env={**os.environ, "MALLOC_PERTURB_": fill})
    for suffix in (".mp4", ".gif", ".webp"):
        assert (tmp_path / f"90{suffix}").read_bytes() == (tmp_path / f"165{suffix}").read_bytes()


@pytest.mark.parametrize("suffix", [".mp4", ".gif", ".webp"])
def test_a_file_has_every_frame_at_its_pace_and_says_what_it_was_made_of(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    write_clip(path, clip(), ABOUT)
    colours, length = shown(path)
    assert len(colours) == 5
    assert np.abs(np.subtract(colours, COLOURS)).max() <= 3
    assert length == pytest.approx(5 / 16, abs=0.006)  # a GIF counts hundredths of a second
    assert about_made(path) == ABOUT
    first = path.read_bytes()
    write_clip(path, clip(), ABOUT)
    assert path.read_bytes() == first
    assert (DRAWN.proves(path), SAMPLE.proves(path)) == (True, False)
    write_clip(path, clip(), {**ABOUT, "step": 3})
    assert (DRAWN.proves(path), SAMPLE.proves(path)) == (False, True)


def test_a_video_has_the_form_that_every_browser_plays(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    write_clip(path, clip(23.976), ABOUT)
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (stream.codec_context.colorspace, stream.codec_context.color_range) == (1, 1)  # BT.709, limited
        assert float(stream.average_rate) == pytest.approx(23.976)
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")  # the index comes first


@pytest.mark.parametrize("fps", [7, 16, 24, 48])
def test_rounded_times_do_not_add_up(fps: float) -> None:
    for unit in (1, 10):
        ends = np.cumsum(durations_of(clip(fps, 81), unit))
        assert np.abs(ends - np.arange(1, 82) * 1000 / fps).max() <= unit / 2


@pytest.mark.parametrize("suffix", [".mp4", ".gif", ".webp"])
def test_files_of_others_say_nothing(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    for content in (b"", b"not a clip", b"GIF89a", b"RIFF\x04\0\0\0WEBP"):
        path.write_bytes(content)
        assert about_clip(path) == {}
    write_clip(path, clip(), {"prompt": "of another program"})
    assert about_clip(path) == {}
    write_png(path, clip().frames[0], ABOUT)
    assert about_clip(path) == {}


def test_what_a_format_cannot_hold_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for suffix in (".gif", ".webp"):
        with pytest.raises(UsageError, match="can show at most 50 frames a second, not 60"):
            check_clip_file(tmp_path / f"a{suffix}", 60)
    with pytest.raises(DsctlError, match="the clip is 63x48, and an .mp4 has even sides"):
        write_clip(tmp_path / "a.mp4", Clip((Image.new("RGB", (63, 48)),), 8), ABOUT)
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(DsctlError, match="PyAV, which writes videos, is not installed"):
        check_clip_file(tmp_path / "a.mp4", 8)
    assert about_clip(tmp_path / "a.mp4") == {}
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_line_and_leaves_the_file_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.mp4"
    write_clip(path, clip(), ABOUT)
    before = path.read_bytes()

    def full(*_: Any, **__: Any) -> None:
        raise av.FFmpegError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(av.VideoFrame, "from_image", full)
    with pytest.raises(DsctlError, match="a.mp4 could not be written: no space left"):
        write_clip(path, clip(), ABOUT)
    assert [each.name for each in tmp_path.iterdir()] == ["a.mp4"]
    assert path.read_bytes() == before
