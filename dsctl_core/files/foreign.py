"""Name the format of a file of weights that is no safetensors file, by its first bytes rather than by its name.

Nothing is unpacked or run to find out: a pickle can run code when it is opened.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dsctl_core.errors import DsctlError

HEAD = 512  # bytes that are looked at
PICKLE_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".pkl")
NOT_WEIGHTS = (".json", ".txt", ".md", ".py", ".png", ".jpg", ".jpeg", ".webp")  # what stands beside weights
CONVERT = "convert it to safetensors, or ask its author for a .safetensors file"
RUNS_CODE = "which can run code when it is opened"


@dataclass(frozen=True)
class ForeignFormat:
    """A format that is not read here: what such a file is, and what to do instead."""

    what: str
    instead: str


PICKLE = ForeignFormat(f"a pickle, {RUNS_CODE}", CONVERT)
ZIPPED_PICKLE = ForeignFormat(f"a pickle in a zip archive, as torch.save writes it, {RUNS_CODE}", CONVERT)
ZIP = b"PK\x03\x04"
# The first bytes of a file -> its format. Pickles of protocol 2 to 5 begin with 0x80 and the number.
MAGIC = {
    b"GGUF": ForeignFormat(
        "a GGUF file, whose weights are quantized for llama.cpp and ComfyUI",
        "fetch the model's own repository in diffusers layout, or a .safetensors file of bf16, fp16 or fp32",
    ),
    **{bytes((0x80, protocol)): PICKLE for protocol in (2, 3, 4, 5)},
    ZIP: ForeignFormat("a zip archive", "unpack it, and give the .safetensors file in it"),
    b"version https://git-lfs": ForeignFormat(
        "a Git LFS pointer: a text that stands for the weights",
        "run `git lfs pull` where it was cloned, or use `dsctl download`",
    ),
    b"<!DOCTYPE": ForeignFormat("a web page", "download the file itself: `dsctl download OWNER/NAME`"),
    b"<!doctype": ForeignFormat("a web page", "download the file itself: `dsctl download OWNER/NAME`"),
    b"<html": ForeignFormat("a web page", "download the file itself: `dsctl download OWNER/NAME`"),
    b"\x89HDF": ForeignFormat("an HDF5 file of Keras or TensorFlow", "fetch the model in safetensors"),
    b"\x93NUMPY": ForeignFormat("a NumPy array", "fetch the model in safetensors"),
    b"\x1f\x8b": ForeignFormat("a gzip archive", "unpack it, and give the .safetensors file in it"),
    b"\x89PNG": ForeignFormat("a picture", "give a .safetensors file"),
    b"\xff\xd8\xff": ForeignFormat("a picture", "give a .safetensors file"),
}


def foreign_format(path: Path) -> ForeignFormat | None:
    """Return the format of the file at `path`; None for a safetensors file, and for one that is not known.

    Raises OSError if the file cannot be read.
    """
    head = _head_of(path)
    if _is_safetensors(head):
        return None
    found = next((form for magic, form in MAGIC.items() if head.startswith(magic)), None)
    if head.startswith(ZIP) and b"data.pkl" in head:
        return ZIPPED_PICKLE
    if found is None and path.suffix.lower() in PICKLE_SUFFIXES:
        return PICKLE
    if found is None and path.suffix.lower() == ".gguf":
        return MAGIC[b"GGUF"]
    return found


def is_safetensors(path: Path) -> bool:
    """Return whether the file at `path` begins as a safetensors file does, whatever its name."""
    return _is_safetensors(_head_of(path))


def _head_of(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(HEAD)


def _is_safetensors(head: bytes) -> bool:
    # The length of the header, less than 2^32, and the header. The length can begin as another format does.
    return head[4:9] == bytes(4) + b"{"


def refuse_foreign(path: Path) -> None:
    """Raise a DsctlError, with the name of the format, for a file whose format is known and is not safetensors."""
    found = foreign_format(path)
    if found is not None:
        raise DsctlError(f"{path} is {found.what}", hint=found.instead)


def foreign_in(folder: Path) -> tuple[Path, ForeignFormat] | None:
    """Return the first file in `folder`, by name, with weights in another format, and that format; None if none is."""
    for file in sorted(folder.iterdir()):
        if file.is_file() and file.suffix.lower() not in NOT_WEIGHTS:
            found = foreign_format(file)
            if found is not None:
                return file, found
    return None


def is_pickle(path: Path) -> bool:
    """Return whether the file at `path` is a pickle, whatever its name; by its name if it cannot be read."""
    try:
        return foreign_format(path) in (PICKLE, ZIPPED_PICKLE)
    except OSError:
        return path.suffix.lower() in PICKLE_SUFFIXES
