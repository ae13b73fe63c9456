"""Remember what decoding a whole file has shown, so that a validation does not decode a file that is unchanged."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field
from typing_extensions import TypedDict

from dsctl_core.data.file_store import Record
from dsctl_core.data.inspection import FileFacts, ProfileUse
from dsctl_core.data.known_files import KnownFiles, state_of
from dsctl_core.data.problems import DataError
from dsctl_core.errors import DsctlError
from dsctl_core.files.json import checked, parse_json
from dsctl_core.remote import anywhere

Hex = Annotated[str, Field(pattern=r"^([0-9a-f]{2})*$")]


class Decoded(TypedDict):
    """What is kept of `FileFacts`, beside what the record of the file has in other columns."""

    format: str
    expected_format: str | None
    frames: int
    colors: Hex
    difference_hash: str
    profile: ProfileUse
    black: bool


def remembered(known: KnownFiles, paths: Sequence[Path], videos: bool) -> Iterator[tuple[Path, FileFacts]]:
    """Yield the facts of those of `paths` that were decoded before, as pictures, and are unchanged.

    With `videos`, GIFs are read as videos, and are decoded again.
    """
    for path, record in known.current([str(path) for path in paths]):
        if record.decoded is not None and record.whole is not None and record.sample is not None:
            try:
                facts = _facts(record)
            except DsctlError:
                continue  # damaged: decoded again, and then written anew
            if not videos or facts.format != "GIF":
                yield Path(path), facts


def _facts(record: Record) -> FileFacts:
    assert record.decoded is not None
    assert record.whole is not None
    assert record.sample is not None
    own = checked(parse_json(record.decoded, record.name), Decoded, record.name)
    return FileFacts(
        (record.width, record.height),
        record.size,
        record.whole,
        own["format"],
        own["expected_format"],
        own["frames"],
        bytes.fromhex(own["colors"]),
        int(own["difference_hash"], 16),
        profile=own["profile"],
        sample=record.sample,
        black=own["black"],
    )


def keep(known: KnownFiles, states: Mapping[Path, bytes | None], found: Mapping[Path, FileFacts | DataError]) -> None:
    """Keep what was found out about files, whose `states` are from before they were read."""
    records = []
    for path, facts in found.items():
        if not isinstance(facts, FileFacts) or facts.is_video:
            continue
        before = states[path]
        if before is None or state_of(str(path)) != before:
            continue
        try:
            state = before if anywhere.is_apart(path) else path.stat()
        except OSError:
            continue
        own: Decoded = {
            "format": facts.format,
            "expected_format": facts.expected_format,
            "frames": facts.frames,
            "colors": facts.colors.hex(),
            "difference_hash": f"{facts.difference_hash:x}",
            "profile": facts.profile,
            "black": facts.black,
        }
        about = (facts.size, facts.sample, facts.digest, json.dumps(own))
        records.append(known.record(str(path), state, facts.file_bytes, *about))
    known.put(records)


def states_of(paths: Sequence[Path]) -> dict[Path, bytes | None]:
    """Return the states of files on the disk."""
    return {path: state_of(str(path)) for path in paths}
