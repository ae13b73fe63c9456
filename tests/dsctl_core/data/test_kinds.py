"""Kinds of files: every picture that people have is read, or is a problem with its name, whatever its suffix."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from dsctl_core.data import UnifiedDataset, check_dataset, kinds
from dsctl_core.data.check import DatasetError
from dsctl_core.data.images import LoadImage, ends_properly, open_image
from dsctl_core.data.kinds import NO_PICTURES, PLUGINS, add_plugin, media_of, media_suffixes, picture_suffixes
from dsctl_core.errors import DsctlError

# Formats that Pillow writes, by the suffix that people know them by; JXL and HEIC are written by their packages.
WRITTEN = {
    **dict.fromkeys((".jpg", ".jpeg", ".jfif", ".jpe", ".JPG"), "JPEG"),
    **dict.fromkeys((".tif", ".tiff"), "TIFF"),
    **dict.fromkeys((".heic", ".heif", ".HEIC"), "HEIF"),
    **dict.fromkeys((".jp2", ".j2k"), "JPEG2000"),
    ".png": "PNG",
    ".webp": "WEBP",
    ".gif": "GIF",
    ".bmp": "BMP",
    ".avif": "AVIF",
    ".jxl": "JXL",
    ".apng": "PNG",
    ".ppm": "PPM",
    ".tga": "TGA",
    ".qoi": "QOI",
    ".pcx": "PCX",
    ".dds": "DDS",
}
RED = (200, 30, 40)


def picture_bytes(image_format: str, size: tuple[int, int] = (64, 48)) -> bytes:
    """Return a red picture in a format."""
    import pillow_heif
    import pillow_jxl  # noqa: F401 - Pillow writes JXL with it

    pillow_heif.register_heif_opener()
    stream = BytesIO()
    Image.new("RGB", size, RED).save(stream, image_format)
    return stream.getvalue()


@pytest.mark.parametrize("suffix", WRITTEN)
def test_a_picture_is_read_from_a_folder_of_captions_by_its_suffix(tmp_path: Path, suffix: str):
    (tmp_path / f"a{suffix}").write_bytes(picture_bytes(WRITTEN[suffix]))
    (tmp_path / "a.txt").write_text("a red square")
    dataset = UnifiedDataset(tmp_path)
    check_dataset(dataset)
    image = dataset[0]["image"]
    assert (image.size, image.mode) == ((64, 48), "RGB")
    assert max(abs(a - b) for a, b in zip(image.getpixel((30, 20)), RED, strict=True)) < 30
    assert dataset.metadata.left_out.lines() == []


def test_every_format_that_pillow_opens_is_a_picture_or_is_refused_with_what_it_is():
    Image.init()
    known = {name: suffix for suffix, name in Image.registered_extensions().items() if name in Image.OPEN}
    assert len(known) > 25
    for name, suffix in known.items():
        assert (suffix in picture_suffixes()) != (name in NO_PICTURES), name
    assert set(NO_PICTURES) & set(known) >= {"EPS", "HDF5", "WMF", "MPEG"}
    assert {".mpo", ".jfif", ".heic", ".jxl", ".avif"} <= picture_suffixes()
    assert not {".pdf", ".eps", ".ps", ".txt", ".json"} & media_suffixes()


@pytest.mark.parametrize(
    "image_format", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "AVIF", "HEIF", "JPEG2000", "QOI"]
)
@pytest.mark.parametrize("name", ["a", "a.jpg_large", "a.download"])
def test_a_picture_without_a_known_suffix_is_found_by_its_first_bytes(tmp_path: Path, name: str, image_format: str):
    (tmp_path / name).write_bytes(picture_bytes(image_format))
    (tmp_path / f"{name}.txt").write_text("a red square")
    (tmp_path / "b.unknown").write_bytes(b"no picture at all, but text")
    dataset = UnifiedDataset(tmp_path)
    assert [row["image"] for row in dataset.metadata.rows] == [name]
    assert dataset[0]["image"].size == (64, 48)
    assert dataset.metadata.left_out.lines() == ["1 file was left out: 1 .unknown"]


@pytest.mark.parametrize(
    ("name", "data", "problem", "hint"),
    [
        ("a.nef", b"II*\0" + bytes(60), "is a raw camera file", "convert it to png"),
        ("a.DNG", b"MM\0*" + bytes(60), "is a raw camera file", "convert it to png"),
        ("a.mpg", b"\0\0\1\xba" + bytes(60), "does not say where it ends", "convert it to mp4"),
        ("a.wmv", b"0&\xb2u" + bytes(60), "does not say where it ends", "convert it to mp4"),
        ("a.svg", b"<svg xmlns=", "is a vector drawing", "convert it to png"),
        ("a.exr", b"v/1\x01" + bytes(60), "whose white is unknown", "convert it to png"),
        ("a.kra", b"PK\3\4", "the project of a drawing program", "convert it to png"),
        ("a.png", b"%PDF-1.4", "is a PDF document", "as png"),
        ("a.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "PostScript", "png"),
        ("a.png", b"\x89HDF\r\n\x1a\n" + bytes(60), "is an HDF5 file, not a picture", "png"),
        ("a.jpg", b"\0\0\1\xb3\x04\0\x40" + bytes(60), "is a video, not a picture", "convert it to png"),
        ("a.png", b'<?xml version="1.0"?><svg/>', "a vector drawing (SVG)", "export it as png"),
        ("a.png", b"PK\3\4" + bytes(60), "is an archive", "unpack it"),
        ("a", b"\0\0\0\x18ftypcrx \0\0\0\0", "is not a picture", "again"),
    ],
)
def test_what_is_not_read_is_a_row_with_a_problem_that_names_it(tmp_path: Path, name, data, problem, hint):
    (tmp_path / name).write_bytes(data)
    (tmp_path / "a.txt").write_text("a caption")
    with pytest.raises(DatasetError) as caught:
        check_dataset(UnifiedDataset(tmp_path))
    assert f"{tmp_path / name} " in caught.value.problem
    assert problem in caught.value.problem
    assert hint in caught.value.hint


@pytest.mark.parametrize(("name", "image_format"), [("HEIC", "HEIF"), ("JPEG XL", "JXL")])
def test_without_the_package_of_a_format_the_problem_says_what_to_install(tmp_path, monkeypatch, name, image_format):
    data = picture_bytes(image_format)
    monkeypatch.setattr(kinds, "_is_added", lambda plugin: False)
    plugin = next(each for each in PLUGINS if each.name == name)
    assert not add_plugin(data)
    error = kinds.unreadable(tmp_path / "a.jpg", data[:64])
    assert f"is a {name} picture, which needs a package that is not installed" in error.problem
    assert f'pip install "dsctl[{plugin.extra}]"' in error.hint


def test_the_extras_that_are_named_exist():
    project = (Path(__file__).parents[3] / "pyproject.toml").read_text()
    assert [plugin.extra for plugin in PLUGINS] == ["heic", "jxl"]
    assert all(f"\n{plugin.extra} = [" in project for plugin in PLUGINS)


@pytest.mark.parametrize("image_format", ["AVIF", "HEIF"])
def test_a_whole_file_of_boxes_is_known_by_its_length_and_a_cut_one_is_refused(tmp_path, image_format, monkeypatch):
    path, data = tmp_path / "a.avif", picture_bytes(image_format)
    path.write_bytes(data)
    assert ends_properly(BytesIO(path.read_bytes()), image_format)
    with open_image(path) as image:
        monkeypatch.setattr(type(image), "load", lambda self: pytest.fail("was decoded"))
        assert LoadImage().preview(path) == (64, 48)
    monkeypatch.undo()
    lengths = range(len(data) // 2, len(data) - 1, 7)
    assert len(lengths) > 10
    for length in lengths:
        path.write_bytes(data[:length])
        assert not ends_properly(BytesIO(path.read_bytes()), image_format)
        with pytest.raises(DsctlError):
            LoadImage().preview(path)


@pytest.mark.parametrize("data", [b"", b"GIF", b"hello, this is text", b"BM is a word", bytes(64), b"\0\0\0\x14ftyp"])
def test_other_bytes_are_no_media(data: bytes):
    assert media_of(data) in (None, "a video")
    assert (media_of(data) == "a video") == data.endswith(b"ftyp")
