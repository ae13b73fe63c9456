"""Find the parts in the shards of a cache that is being written, and take out those that no entry uses."""

from __future__ import annotations

from collections.abc import Collection

from dsctl_core.cache.output import CacheOutput
from dsctl_core.progress import Progress


class Parts:
    """The parts of a cache, and the name of the shard of each (`shards`). Damaged shards count as missing."""

    def __init__(self, output: CacheOutput, progress: Progress) -> None:
        self.output, self.named = output, output.named()
        self.damaged: set[str] = set()
        for name, error in output.examined(output.sizes()):
            if error is not None:
                self.damaged.add(name)
                progress.note(f"{error.problem}; its entries are encoded again")
        self.shards = self._find()

    def refresh(self) -> None:
        """Look again, after parts were written."""
        self.shards = self._find()

    def _find(self) -> dict[str, str]:
        names = list(self.output.sizes())
        again = [name for name in names if name in self.damaged]  # one may have been written again
        bad = {name for name, error in self.output.examined(again) if error is not None}
        shards: dict[str, str] = {}
        for name, keys in self.output.keys(name for name in names if name not in bad):
            for key in keys:
                shards.setdefault(key, name)
        return shards

    def narrow(self, used: Collection[str]) -> set[str]:
        """Have the parts in `used` in shards without others; return the shards that then have none of them."""
        old = set(self.shards.values()) | (self.damaged & self.named)
        keys_of: dict[str, list[str]] = {}
        for key in sorted(used):
            keys_of.setdefault(self.shards[key], []).append(key)
        there = dict(self.output.keys(sorted(keys_of)))
        for name, keys in sorted(keys_of.items()):
            if len(keys) < len(there[name]):
                new = self.output.write(self.output.read(name, keys))
                self.shards |= dict.fromkeys(keys, new)
        self.output.flush()
        return old - {self.shards[key] for key in used}
