"""Read the output of a command as plain values that are equal only if every bit is, for `benchmarks.exact`.

Nothing of the project is imported here: the files are read by their formats.
"""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

from PIL import Image

MEASURED = ("seconds", "samples_per_second", "peak_memory_bytes")  # of a line of metrics.jsonl: no two runs agree
METRICS, MANIFEST, INDEX, RANDOM = "metrics.jsonl", "manifest.json", "index.json", "random.safetensors"
UNSEEDED = (".python.", ".numpy.")  # generators that a run keeps the state of, but neither seeds nor draws from
HEADER_KEY = "dsctl_cache"  # where a shard's header says how the values of its parts are put together

Tensors = dict[str, tuple[str, list[int], bytes]]


def read_output(path: Path) -> dict[str, Any]:
    """Return what is in an output folder, or in the file `path` and those numbered after it, such as a-001.png."""
    if path.is_dir():
        return _read_folder(path)
    numbered = path.parent.glob(f"{path.stem}-[0-9][0-9][0-9]{path.suffix}")
    found = {each.name: _read_file(each) for each in sorted([path, *numbered]) if each.is_file()}
    if not found:
        raise FileNotFoundError(f"the command left nothing at {path.name}")
    return found


def _read_folder(folder: Path) -> dict[str, Any]:
    if (folder / INDEX).is_file() and (folder / MANIFEST).is_file():
        return {"cache": read_cache(folder)}
    found: dict[str, Any] = {}
    for path in sorted(folder.iterdir()):
        if path.is_symlink():
            continue
        if path.is_dir():
            inner = _read_folder(path)
            found.update({f"{path.name}/{name}": value for name, value in inner.items()})
        elif path.suffix in (".safetensors", ".png") or path.name == METRICS:
            found[path.name] = _read_file(path)
    return found


def _read_file(path: Path) -> Any:
    if path.name == METRICS:
        return read_metrics(path)
    if path.suffix == ".png":
        return digest_picture(path)
    return digest_safetensors(path)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl without what is measured with a clock, floats to the last bit."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [{name: exact(value) for name, value in line.items() if name not in MEASURED} for line in lines]


def exact(value: Any) -> Any:
    """Return a JSON value with every float in it as the text of float.hex()."""
    if isinstance(value, float):
        return value.hex()
    if isinstance(value, dict):
        return {name: exact(each) for name, each in value.items()}
    return [exact(each) for each in value] if isinstance(value, list | tuple) else value


def read_safetensors(path: Path) -> tuple[Tensors, dict[str, str]]:
    """Return dtype, shape and bytes of every tensor in a file, by name, and the metadata of its header."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    metadata = header.pop("__metadata__", {})
    data = memoryview(content)[8 + length :]
    return {
        name: (about["dtype"], about["shape"], bytes(data[slice(*about["data_offsets"])]))
        for name, about in header.items()
    }, metadata


def digest_tensors(tensors: Tensors) -> str:
    """Return the SHA-256 of names, dtypes, shapes and bytes, in the order of the names."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        dtype, shape, content = tensors[name]
        total.update(json.dumps([name, dtype, shape, len(content)]).encode())
        total.update(content)
    return total.hexdigest()


def digest_safetensors(path: Path) -> dict[str, Any]:
    """Return the digest of a file's tensors and the names, not the values, of its metadata."""
    tensors, metadata = read_safetensors(path)
    if path.name == RANDOM:
        tensors = {name: each for name, each in tensors.items() if not any(part in name for part in UNSEEDED)}
    return {"tensors": digest_tensors(tensors), "count": len(tensors), "metadata": sorted(metadata)}


def digest_picture(path: Path) -> dict[str, Any]:
    """Return the size of a picture and the SHA-256 of its pixels."""
    with Image.open(path) as picture:
        pixels = picture.convert("RGBA" if "A" in picture.mode else "RGB")
    return {"size": list(pixels.size), "pixels": hashlib.sha256(pixels.tobytes()).hexdigest()}


def read_cache(folder: Path) -> dict[str, Any]:
    """Return a cache's entries with their keys and plain values, and of every part its values and its tensors.

    The digest of a part leaves out its key, so that another key with the same numbers can be told from other numbers.
    """
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    parts: dict[str, Any] = {}
    shards = []
    for path in sorted(folder.rglob("*.safetensors")):
        tensors, metadata = read_safetensors(path)
        shards.append(digest_tensors(tensors))
        for key, structure in json.loads(metadata[HEADER_KEY]).items():
            own = {name.removeprefix(f"{key}/"): each for name, each in tensors.items() if name.startswith(f"{key}/")}
            parts[key] = {"values": exact(structure), "tensors": digest_tensors(own)}
    return {
        "entries": [exact(entry) for entry in index["entries"]],
        "parts": [[parts[key] for key in entry["parts"]] for entry in index["entries"]],
        "shards": sorted(shards),
    }
