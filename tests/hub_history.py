"""The commits of a dataset on the local hub, and what ModelScope says of the files at one of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Commit:
    """All files at a commit, and by which commit each was written."""

    id: str
    files: dict[str, bytes]
    written: dict[str, str]


@dataclass
class History:
    """The commits of a repository, the last of which is `master`.

    `says` is how much of a commit the hub names: all of it ("id"), its first digits ("short"), or nothing ("").
    """

    commits: list[Commit] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)
    says: str = "short"

    def push(self, changes: Mapping[str, bytes | None]) -> str:
        """Write files, or remove those that are None; return the commit."""
        before = self.commits[-1] if self.commits else Commit("", {}, {})
        made = hashlib.sha1(f"{before.id} {len(self.commits)} {sorted(changes)}".encode()).hexdigest()
        files = {**before.files, **{path: content for path, content in changes.items() if content is not None}}
        files = {path: content for path, content in files.items() if changes.get(path, b"") is not None}
        self.commits.append(Commit(made, files, {**before.written, **dict.fromkeys(changes, made)}))
        return made

    def at(self, revision: str) -> Commit | None:
        """Return the commit of a branch, a tag or a commit; None for an unknown revision."""
        if revision == "master":
            return self.commits[-1]
        wanted = self.tags.get(revision, revision)
        return next((each for each in self.commits if each.id == wanted), None)

    def tree(self, asked: Mapping[str, str]) -> dict[str, Any]:
        """Return the `Data` of the answer to a request for a page of a listing."""
        commit = self.at(asked.get("Revision", "master"))
        if commit is None:
            return {"Files": None, "LatestCommitter": None}
        start = f"{asked['Root']}/" if asked.get("Root") else ""
        deep = asked.get("Recursive") == "True"
        found: dict[str, dict[str, Any]] = {}
        for path, content in sorted(commit.files.items()):
            parts = path.removeprefix(start).split("/") if path.startswith(start) else []
            for depth in range(1, len(parts) if deep else min(len(parts), 2)):
                folder = start + "/".join(parts[:depth])
                found[folder] = {"Path": folder, "Name": parts[depth - 1], "Type": "tree", "Size": 0}
            if parts and (deep or len(parts) == 1):
                checksum = hashlib.sha256(content).hexdigest()
                found[path] = {"Path": path, "Type": "blob", "Size": len(content), "Sha256": checksum}
                found[path] |= {"Revision": commit.written[path]} if self.says else {}
        size, number = int(asked.get("PageSize", 10**6)), int(asked.get("PageNumber", 1))
        latest = {"Id": commit.id if self.says == "id" else "", "ShortId": commit.id[:8]} if self.says else None
        return {"Files": list(found.values())[size * (number - 1) : size * number], "LatestCommitter": latest}
