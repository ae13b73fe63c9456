"""Pages show clips that play: in the page itself, small, with every frame, and still pictures as before."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import av
import pytest
from PIL import Image

from dsctl_core.commands.dataset import validate
from dsctl_core.commands.report import report
from dsctl_core.media import clip_file
from dsctl_core.media.clip import Clip
from dsctl_core.media.clip_file import write_clip
from dsctl_core.options import DatasetValidateOptions, ReportOptions
from dsctl_core.report import clips
from dsctl_core.report.clips import clip_url, scaled
from tests.dsctl_core.report.html_page import NASTY, Page
from tests.dsctl_core.report.test_run import write_run

COLOURS = ((250, 0, 0), (0, 160, 0), (0, 0, 250), (200, 180, 30), (90, 90, 90))


def clip(size: tuple[int, int] = (448, 336), fps: float = 8) -> Clip:
    return Clip(tuple(Image.new("RGB", size, colour) for colour in COLOURS), fps)


def decoded(source: str) -> list[Image.Image]:
    """Return the frames of a clip in a data: URL."""
    kind, _, data = source.partition(";base64,")
    stream = io.BytesIO(base64.b64decode(data))
    if kind == "data:video/mp4":
        with av.open(stream) as file:
            return [frame.to_image() for frame in file.decode(video=0)]
    with Image.open(stream) as image:
        return [(image.seek(n), image.convert("RGB"))[1] for n in range(image.n_frames)]  # type: ignore[attr-defined]


def played(html: str) -> list[str]:
    """Return the sources of the videos of a page, which must play by themselves and repeat."""
    page = Page(html)
    assert page.open == []
    assert html.count("<video autoplay loop muted playsinline ") == page.tags.count("video")
    return [source for source in page.sources if source.startswith("data:video/mp4;base64,")]


def test_samples_of_a_run_of_clips_play_in_its_page(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", prompts=("a cat",))
    about = {"prompt": NASTY, "seed": 1, "width": 448, "height": 336, "cfg_scale": [4.0, 3.0], "dsctl_version": "1"}
    for step in (0, 10, 20):
        write_clip(run / "samples" / f"step-{step}-2.mp4", clip(), {**about, "step": step, "fps": 8})
    (run / "samples" / "step-10-2.mp4").write_bytes(b"damaged")
    html = report(ReportOptions(runs=(run,), output=tmp_path / "a.html")).report.read_text()
    sources = played(html)
    assert len(sources) == 2
    assert [frame.size for frame in decoded(sources[1])] == [(224, 168)] * 5
    assert all(
        max(abs(one - other) for one, other in zip(frame.getpixel((9, 9)), colour, strict=True)) <= 6
        for frame, colour in zip(decoded(sources[1]), COLOURS, strict=True)
    )
    page = Page(html)
    assert page.tags.count("img") == 3
    assert NASTY in page.text
    assert "cfg 4, 3" in page.text


def test_videos_and_gifs_of_a_dataset_play_in_its_page(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.gif"):
        write_clip(tmp_path / name, clip((64, 48)), {})
    Image.new("RGB", (64, 48), "red").save(tmp_path / "c.png")
    (tmp_path / "d.mp4").write_bytes((tmp_path / "a.mp4").read_bytes()[:600])
    (tmp_path / "metadata.csv").write_text("video,prompt\na.mp4,a\nb.gif,b\nc.png,c\nd.mp4,d\n", encoding="utf-8")
    options = DatasetValidateOptions(path=tmp_path, data_file_keys="video", report=tmp_path / "page.html", workers=1)
    assert not validate(options).clean
    html = (tmp_path / "page.html").read_text()
    sources = played(html)
    # At 8 frames a second, of a GIF whose times are in hundredths of a second.
    assert [[frame.size for frame in decoded(source)] for source in sources] == [[(64, 48)] * 5, [(64, 48)] * 4]
    assert Page(html).tags.count("img") == 1


def test_without_pyav_clips_are_animated_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_clip(tmp_path / "a.gif", clip((64, 48)), {})
    write_clip(tmp_path / "b.mp4", clip((64, 48)), {})
    for module in (clip_file, clips):
        monkeypatch.setattr(module, "clip_suffix", lambda: ".webp")
    source = clip_url(tmp_path / "a.gif", 160)
    assert source is not None
    assert source.startswith("data:image/webp;base64,")
    assert len(decoded(source)) > 1
    assert clips.sample_url(tmp_path / "b.mp4", 8, 160) == (
        "data:video/mp4;base64," + base64.b64encode((tmp_path / "b.mp4").read_bytes()).decode()
    )
    assert clip_url(tmp_path / "nowhere.gif", 160) is None


@pytest.mark.parametrize(
    ("size", "expected"), [((832, 480), (224, 130)), ((64, 48), (64, 48)), ((33, 17), (32, 16)), ((1, 999), (2, 224))]
)
def test_a_small_clip_has_even_sides(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert scaled(Image.new("RGB", size), 224).size == expected
