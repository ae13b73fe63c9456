"""What can go wrong with a hub, in one line with a remedy, whichever library raised it.

Exceptions are told by class and status, never by their text: that is partly Chinese, and may name signed addresses.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dsctl_core.errors import DsctlError
from dsctl_core.files.atomic import write_error

TOKENS = {
    "huggingface": "set HF_TOKEN, log in with `hf auth login`, or give --token",
    "modelscope": "set MODELSCOPE_API_TOKEN, log in with `modelscope login`, or give --token",
}
TITLES = {"huggingface": "Hugging Face", "modelscope": "ModelScope"}
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS)
OFFLINE = "check the connection; files that are there already are used with DSCTL_SKIP_DOWNLOAD=1"


class HubUnreachable(DsctlError):
    """The hub did not answer, so what is on the disk is all there is."""


class WrongContent(Exception):
    """What arrived is not what the hub announced."""


@contextmanager
def explained(hub: str, what: str, folder: Path | None = None) -> Iterator[None]:
    """Turn whatever a hub's library raises in this block, while working on `what`, into a DsctlError."""
    try:
        yield
    except DsctlError:
        raise
    except Exception as error:
        found = explain(hub, what, error, folder)
        if found is None:
            raise
        raise found from error


def explain(hub: str, what: str, error: BaseException, folder: Path | None = None) -> DsctlError | None:
    """Return what `error` means for a person, or None when it is no fault of hub, network or disk."""
    names = {kind.__name__ for kind in type(error).__mro__}
    title = TITLES[hub]
    failed = getattr(error, "failed_files", None)
    if "FileDownloadError" in names and failed:
        path, first = next(iter(failed.items()))
        return explain(hub, f"{what}: {path}", first, folder)
    full = _disk_fault(error)
    if full is not None:
        return write_error(Path(full.filename) if full.filename else (folder or Path()), full)
    if isinstance(error, WrongContent) or "FileIntegrityError" in names or "Consistency check failed" in str(error):
        return DsctlError(
            f"{what} arrived with other content than {title} announced, and was not kept",
            hint="run it again; if it happens again, the file on the hub is damaged",
        )
    if "GatedRepoError" in names:
        return DsctlError(f"{what} is gated on {title}", hint=f"accept its terms on its page, then {TOKENS[hub]}")
    if "RevisionNotFoundError" in names:
        return DsctlError(f"{what} has no such revision on {title}", hint="check --revision")
    status = _status(error)
    if status == 401 or "AuthenticationError" in names:
        return DsctlError(f"{title} does not accept the token for {what}, or wants one", hint=TOKENS[hub])
    if status == 403 or "PermissionDeniedError" in names:
        return DsctlError(
            f"{title} does not allow this for {what}", hint=f"check the rights of the token: {TOKENS[hub]}"
        )
    if status == 404 or names & {"NotExistError", "RepositoryNotFoundError", "EntryNotFoundError"}:
        return DsctlError(
            f"{what} is not on {title}, or is private",
            hint=f"check the name, try the other hub with --source, or {TOKENS[hub]}",
        )
    if status == 429 or "RateLimitError" in names:
        return DsctlError(f"{title} asks to slow down ({what})", hint="wait some minutes, then run it again")
    if (status is not None and status >= 500) or names & {"ServerError", "StorageError"}:
        code = f" (status {status})" if status is not None else ""
        return HubUnreachable(
            f"{title} is out of order{code}: {what}", hint="run it again later: what is there is kept"
        )
    if "OfflineModeIsEnabled" in names:
        return HubUnreachable(
            f"{what} is not here, and HF_HUB_OFFLINE forbids the network", hint="unset HF_HUB_OFFLINE"
        )
    if _is_network(error, names):
        return HubUnreachable(f"{title} cannot be reached for {what}", hint=OFFLINE)
    if status is not None:
        return DsctlError(f"{title} refused this with status {status}: {what}", hint="check the names given")
    if "HFValidationError" in names or "InvalidParameter" in names:
        return DsctlError(f"{title} takes no such name: {what}", hint="write it as OWNER/NAME")
    cause = error.__cause__ or error.__context__
    return explain(hub, what, cause, folder) if cause is not None and cause is not error else None


def _disk_fault(error: BaseException) -> OSError | None:
    """Return what the disk said, if that is at the bottom of `error`."""
    seen: BaseException | None = error
    for _ in range(10):
        if isinstance(seen, OSError) and seen.errno in DISK:
            return seen
        seen = None if seen is None else seen.__cause__ or seen.__context__
    return None


def _status(error: BaseException) -> int | None:
    for place in (getattr(error, "response", None), error):
        status = getattr(place, "status_code", None)
        if isinstance(status, int) and status >= 400:
            return status
    return None


def _is_network(error: BaseException, names: set[str]) -> bool:
    module = type(error).__module__.split(".")[0]
    from_library = module in ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3") and "Error" in str(
        names
    )
    return isinstance(error, ConnectionError | TimeoutError) or "NetworkError" in names or from_library
