"""A dataset without a fault, and functions that each give it one."""

from __future__ import annotations

import json
import os
import random
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow
import pyarrow.parquet
from PIL import Image

Spoil = Callable[[Path], None]


@dataclass(frozen=True)
class Bad:
    """A mistake: what makes it, the kind and words of its message, and of its remedy."""

    spoil: Spoil
    kind: str
    says: str
    remedy: str
    level: str = "error"
    options: tuple[str, ...] = ()
    seen_by_train: bool = True  # `dsctl train` refuses it too, from the files' beginnings and ends


def die(*_: object) -> None:
    """End the process as the system does when memory runs out."""
    os._exit(9)


def noise(size: tuple[int, int], seed: int) -> Image.Image:
    """Return a picture that is like no other."""
    return Image.frombytes("RGB", size, random.Random(seed).randbytes(size[0] * size[1] * 3))


def good(folder: Path) -> None:
    """Write a dataset of four pictures without a fault."""
    folder.mkdir()
    for number, name in enumerate("abcd"):
        noise((96, 64), number).save(folder / f"{name}.png")
    table(folder, "a.png,a dog", "b.png,a cat", "c.png,two foxes", "d.png,nothing")


def table(folder: Path, *rows: str, header: str = "image,prompt") -> None:
    (folder / "metadata.csv").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")


def row(text: str, name: str = "", data: bytes | None = None) -> Spoil:
    """Return what adds a row, and a file for it."""

    def spoil(folder: Path) -> None:
        if data is not None:
            (folder / name).write_bytes(data)
        with (folder / "metadata.csv").open("a", encoding="utf-8") as file:
            file.write(text + "\n")

    return spoil


def metadata(name: str, data: str | bytes) -> Spoil:
    """Return what replaces the table."""

    def spoil(folder: Path) -> None:
        (folder / "metadata.csv").unlink()
        (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode("utf-8", "surrogatepass"))

    return spoil


def picture(size: tuple[int, int], name: str = "x.png", picture_format: str | None = None) -> Spoil:
    """Return what adds a row with a picture of this size."""

    def spoil(folder: Path) -> None:
        noise(size, 9).save(folder / name, picture_format)
        row(f"{name},x")(folder)

    return spoil


def cut(name: str, share: float) -> Spoil:
    def spoil(folder: Path) -> None:
        picture((96, 64), name)(folder)
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * share)])

    return spoil


def damaged_in_the_middle(folder: Path) -> None:
    data = bytearray((folder / "b.png").read_bytes())
    data[len(data) // 2 : len(data) // 2 + 50] = bytes(50)
    (folder / "b.png").write_bytes(data)


def link(name: str, target: str) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / name).symlink_to(target)
        row(f"{name},x")(folder)

    return spoil


def bomb() -> bytes:
    """Return the beginning of a PNG of 30,000 x 30,000 pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b"")


def video(frames: int, share: float = 1.0) -> Spoil:
    def spoil(folder: Path) -> None:
        import av

        with av.open(str(folder / "x.mp4"), "w", options={"movflags": "faststart"}) as file:
            stream = file.add_stream("libx264", rate=10)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for number in range(frames):
                file.mux(stream.encode(av.VideoFrame.from_image(noise((64, 48), number))))
            file.mux(stream.encode(None))
        data = (folder / "x.mp4").read_bytes()
        (folder / "x.mp4").write_bytes(data[: int(len(data) * share)])
        row("x.mp4,x")(folder)

    return spoil


def captions_beside(*bad: tuple[str, bytes | None]) -> Spoil:
    """Return what replaces the table by captions beside the files, some of them wrong or missing."""

    def spoil(folder: Path) -> None:
        (folder / "metadata.csv").unlink()
        for name in "abcd":
            (folder / f"{name}.txt").write_text("a caption")
        for name, data in bad:
            if data is None:
                (folder / name).unlink()
            else:
                (folder / name).write_bytes(data)

    return spoil


def pairs(*alone: str) -> Spoil:
    """Return what replaces the table by the folders target/ and control/, with pictures that are `alone` in one."""

    def spoil(folder: Path) -> None:
        (folder / "metadata.csv").unlink()
        for number, name in enumerate(("target/a.png", "control/a.png", *alone)):
            (folder / name).parent.mkdir(exist_ok=True)
            noise((96, 64), 20 + number).save(folder / name)
            if name.startswith("target"):
                (folder / name).with_suffix(".txt").write_text("a caption")
        for picture in folder.glob("*.png"):
            picture.unlink()

    return spoil


def loop_of_folders(folder: Path) -> None:
    captions_beside()(folder)
    (folder / "again").symlink_to(folder.absolute())


def parquet(rows: list[dict]) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / "metadata.csv").unlink()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "metadata.parquet")

    return spoil


def swapped(folder: Path) -> None:
    names = [f"{name}.png" for name in "abcd"]
    table(
        folder,
        *(f"{a},{b},edit" for a, b in zip(names, names[1:] + names[:1], strict=True)),
        header="image,edit_image,prompt",
    )


def edited(size: tuple[int, int], change: bool) -> Spoil:
    """Return what makes one row of a target and a reference of `size`, which differ by a small edit or not at all."""

    def spoil(folder: Path) -> None:
        made = noise((4, 4), 31).resize((96, 64), Image.Resampling.BICUBIC)
        reference = made.resize(size, Image.Resampling.LANCZOS)
        if change:
            reference.paste("red", (10, 10, 22, 22))
        made.save(folder / "made.png")
        reference.save(folder / "reference.jpg", quality=95)
        table(folder, "made.png,reference.jpg,edit", header="image,edit_image,prompt")

    return spoil


def copied(folder: Path) -> None:
    row("e.png,x", "e.png", (folder / "a.png").read_bytes())(folder)


def smaller_copy(folder: Path) -> None:
    smooth = noise((4, 4), 5).resize((256, 192), Image.Resampling.BICUBIC)
    for name, size in (("big", (256, 192)), ("small", (96, 72))):
        smooth.resize(size, Image.Resampling.LANCZOS).save(folder / f"{name}.jpg")
        row(f"{name}.jpg,x")(folder)


def animated(folder: Path) -> None:
    noise((64, 64), 1).save(folder / "x.gif", save_all=True, append_images=[noise((64, 64), 2)])
    row("x.gif,x")(folder)


def unknown_pixels(folder: Path) -> None:
    Image.new("F", (64, 64), 0.5).save(folder / "x.tiff")
    row("x.tiff,x")(folder)


def two_tables(folder: Path) -> None:
    (folder / "metadata.json").write_text(json.dumps([{"image": "a.png", "prompt": "x"}]))
