"""What something was made of, as a hash: values, files, weights."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from dsctl_core.checkpoint.identify import weight_files
from dsctl_core.checkpoint.identity import digest_file, weights_identity


def digest(value: Any) -> str:
    """Return the SHA-256 of a JSON value: equal values have equal digests, on every machine."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def digest_files(paths: Iterable[Path]) -> dict[Path, str]:
    """Return the SHA-256 of each file's bytes, of several at a time: hashing and reading both let others run."""
    wanted = list(dict.fromkeys(paths))
    with ThreadPoolExecutor(min(8, (os.cpu_count() or 1) + 1)) as pool:
        return dict(zip(wanted, pool.map(digest_file, wanted), strict=True))


def identify_weights(folder: Path, also: Sequence[Path] = (), notes: Sequence[str] = ()) -> str:
    """Return what tells the component in `folder` from every other: its config, its weights, and the files in `also`.

    `folder` can be a single file, which has no config. `notes` are what else is done to the weights.
    """
    config = [digest_file(folder / "config.json")] if folder.is_dir() else []
    files = [[path.name, digest_file(path)] for path in also]
    return f"sha256:{digest([config, list(notes), weights_identity(weight_files(folder)), files])}"
