"""Write a cache into a folder."""

from __future__ import annotations

import random
import time
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from dsctl_core.cache.folder import (
    SKIPPED_FILE,
    WORKERS,
    busy,
    clear_temporary_files,
    has_manifest,
    locked,
    require_cache_or_nothing,
)
from dsctl_core.cache.manifest import Manifest, read_manifest, write_manifest
from dsctl_core.cache.output import CacheOutput
from dsctl_core.cache.shards import (
    FOLDER,
    Part,
    examine_all,
    read_parts,
    shard_files,
    structures,
    tensor_bytes,
    write_shard,
)
from dsctl_core.errors import DsctlError
from dsctl_core.files.atomic import prepare_folder, unclaim, write_text
from dsctl_core.files.digest import digest_file
from dsctl_core.files.leases import WORKER, Worker

TRIES = 5  # to look after leaving, while others do the same


class FolderOutput(CacheOutput):
    """The cache in a folder."""

    def require_ours(self) -> None:
        """Raise unless the folder is absent, empty, or a cache of ours."""
        require_cache_or_nothing(self.path)

    @contextmanager
    def prepared(self, *, first: bool) -> Iterator[None]:
        """Make the folder; remove it again, as far as it is empty, where the block fails."""
        folders = (self.path / FOLDER, self.path, *self.path.parents)
        made = [path for path in folders if not path.exists()] if first else []
        prepare_folder(self.path / FOLDER)
        try:
            yield
        except BaseException:
            unclaim(made)
            raise

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Lock the folder."""
        with locked(self.path):
            self._refuse_workers()
            clear_temporary_files(self.path)
            yield

    @contextmanager
    def joined(self, group: str, patience: float) -> Iterator[Worker]:
        """Be one of the workers of `group`."""
        folder = self.path / WORKERS / group
        worker, until = Worker(folder), time.monotonic() + patience
        while True:
            try:
                with locked(self.path):  # who shares nothing holds it to its end, others for as long as they join
                    self._refuse_workers(apart_from=folder)
                    folder.parent.mkdir(exist_ok=True)
                    worker.__enter__()
                    if not worker.others():
                        clear_temporary_files(self.path)
                        worker.forget_notes()
                break
            except DsctlError:
                if time.monotonic() > until:
                    raise
                time.sleep(random.SystemRandom().uniform(0.05, 0.2))  # those that were started together must differ
        try:
            yield worker
        finally:
            worker.others()  # what dead ones left is removed
            worker.__exit__()
            if not any(folder.glob(f"*{WORKER}")):  # of those that leave at once, at least one sees nobody
                worker.forget_notes()
                self._clear_after(folder)
            for each in (folder, folder.parent):  # the first is gone where this worker left nothing
                with suppress(OSError):
                    each.rmdir()

    def _clear_after(self, folder: Path) -> None:
        """Remove what workers that were killed had begun to write, unless others are at work or join."""
        for _ in range(TRIES):
            with suppress(DsctlError), locked(self.path):
                if not any(folder.glob(f"*{WORKER}")):
                    clear_temporary_files(self.path)
                return
            time.sleep(random.SystemRandom().uniform(0.01, 0.05))  # another one leaves, or joins

    def _refuse_workers(self, apart_from: Path | None = None) -> None:
        """Raise a DsctlError where other commands share their work on the cache; the caller holds its lock.

        What dead ones left is removed. Workers in the folder `apart_from` may be there.
        """
        for folder in (self.path / WORKERS).glob("*"):
            if folder != apart_from and folder.is_dir():
                with Worker(folder) as looking:
                    if looking.others():
                        raise busy(self.path)
                    looking.forget_notes()
                with suppress(OSError):
                    folder.rmdir()
        with suppress(OSError):
            (self.path / WORKERS).rmdir()

    def manifest(self) -> Manifest:
        """Return the manifest."""
        return read_manifest(self.path)

    def is_whole(self) -> bool:
        """Return whether there is a valid manifest, and the shards are not behind a link."""
        return has_manifest(self.path)

    def sizes(self) -> dict[str, int]:
        """Return the bytes of each shard, by name, sorted."""
        return {path.name: path.stat().st_size for path in shard_files(self.path)}

    def versions(self) -> set[tuple[str, Hashable]]:
        """Return (name, time of the last change) of each shard."""
        return {(path.name, path.stat().st_mtime_ns) for path in shard_files(self.path)}

    def examined(self, names: Iterable[str]) -> Iterator[tuple[str, DsctlError | None]]:
        """Yield each shard with what is wrong with it, or None: every byte is read."""
        for path, error in examine_all(self._file(name) for name in names):
            yield path.name, error

    def keys(self, names: Iterable[str]) -> Iterator[tuple[str, list[str]]]:
        """Yield each shard with the keys of its parts."""
        for name in names:
            yield name, list(structures(self._file(name)))

    def tensor_bytes(self, names: Iterable[str]) -> Iterator[tuple[str, dict[str, int]]]:
        """Yield each shard with the bytes of the tensors of its parts, by key."""
        for name in names:
            yield name, tensor_bytes(self._file(name))

    def read(self, name: str, keys: Collection[str]) -> Mapping[str, Part]:
        """Return some parts of a shard, by key."""
        return read_parts(self._file(name), keys)

    def write(self, parts: Mapping[str, Part]) -> str:
        """Write a shard atomically."""
        return write_shard(self.path, parts).name

    def remove(self, names: Collection[str], named: Collection[str]) -> None:
        """Remove shards whose content has the checksum in their name, and those that the manifest `named`."""
        for name in sorted(names):
            if name in named or digest_file(self._file(name)) == Path(name).stem:
                self._file(name).unlink()

    def write_skipped(self, text: str) -> None:
        """Write skipped.jsonl, or remove it."""
        if text:
            write_text(self.path / SKIPPED_FILE, text)
        else:
            (self.path / SKIPPED_FILE).unlink(missing_ok=True)

    def write_manifest(self, manifest: str, index: str) -> None:
        """Write index.json, then manifest.json, each atomically."""
        write_manifest(self.path, manifest, index)

    def _file(self, name: str) -> Path:
        return self.path / FOLDER / name
