"""Makes tars and Parquet tables of samples, with pictures of noise in them."""

from __future__ import annotations

import io
import json
import tarfile
from typing import Any

import pyarrow
import pyarrow.parquet
from PIL import Image

COUNT = 6


def png(number: int) -> bytes:
    stream = io.BytesIO()
    Image.effect_noise((24 + number, 24), 30).convert("RGB").save(stream, "PNG")
    return stream.getvalue()


PICTURES = [png(number) for number in range(COUNT)]
ROWS = [(f"ball {number}", picture) for number, picture in enumerate(PICTURES)]


def tar_of(files: dict[str, bytes], link: tuple[str, str] | None = None) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        if link is not None:
            member = tarfile.TarInfo(link[0])
            member.type, member.linkname = tarfile.SYMTYPE, link[1]
            tar.addfile(member)
    return stream.getvalue()


def shard(numbers: range) -> bytes:
    files: dict[str, bytes] = {}
    for n in numbers:
        files |= {f"sub/{n:04}.png": PICTURES[n], f"sub/{n:04}.cls": b"3"}
        if n % 2:
            files[f"sub/{n:04}.txt"] = ROWS[n][0].encode()
        else:
            files[f"sub/{n:04}.json"] = json.dumps({"caption": ROWS[n][0], "score": n}).encode()
    return tar_of(files)


def table_of(numbers: range, **more: Any) -> bytes:
    cells = [{"bytes": PICTURES[n], "path": f"p{n}.png" if n else None} for n in numbers]
    stream = io.BytesIO()
    table = pyarrow.table({"image": cells, "prompt": [ROWS[n][0] for n in numbers], **more})
    pyarrow.parquet.write_table(table, stream, row_group_size=2)
    return stream.getvalue()
