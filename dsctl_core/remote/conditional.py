"""What the backends of stores have in common that read and write on the condition of a version."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from functools import partial

from dsctl_core.remote.backends import Backend, Found, Stamp

PART = 64 * 2**20  # bytes of one part of an upload; for Google Cloud Storage a multiple of 2**18
TAKEN = (404, 409, 412)  # statuses of a write whose condition does not hold, or that is done already
WRITE = "dsctl-write"  # the key of the metadata that tells a write from others

Page = Callable[[], list[tuple[Found, float]]]  # a request for files, each with the time when it was written


class ConditionalBackend(Backend):
    """A store whose requests demand the version that was listed, and which says when a file was written."""

    conditional = True

    @abstractmethod
    def _pages(self, prefix: str) -> Iterator[Page]:
        """Yield requests, of `page` files each, below the folder `prefix`."""

    def pages(self, prefix: str) -> Iterator[Callable[[], list[Found]]]:
        """Yield requests, of `page` files each."""
        return (partial(_files, page) for page in self._pages(prefix))

    def stamps(self, prefix: str) -> Iterator[Callable[[], dict[str, Stamp]]]:
        """Yield requests, each of which returns when the next files were written, by address."""
        return (partial(_stamps, page) for page in self._pages(prefix))

    def keeps_version(self, file: Found) -> bool:
        """Return True: each request has demanded it."""
        return True


def bucket_and_key(address: str) -> tuple[str, str]:
    """Return the bucket and the name of an object, "" for the bucket itself."""
    bucket, _, key = address.partition("://")[2].partition("/")
    return bucket, key


def _files(page: Page) -> list[Found]:
    return [found for found, _ in page()]


def _stamps(page: Page) -> dict[str, Stamp]:
    return {found.address: Stamp(found.version, time) for found, time in page()}
