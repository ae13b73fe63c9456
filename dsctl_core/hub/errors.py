"""Turn exceptions of the hub libraries into errors of one line with a hint.

Exceptions are recognized by class and HTTP status, not by their text: it is partly Chinese, and may contain signed
URLs.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dsctl_core.errors import DsctlError
from dsctl_core.files.atomic import write_error
from dsctl_core.hub.proxies import way_to

TOKENS = {
    "huggingface": "set HF_TOKEN, log in with `hf auth login`, or give --token",
    "modelscope": "set MODELSCOPE_API_TOKEN, log in with `modelscope login`, or give --token",
}
TITLES = {"huggingface": "Hugging Face", "modelscope": "ModelScope"}
DISK: tuple[int, ...] = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS)
DISK += (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EILSEQ)
OFFLINE = "check the connection; DSCTL_SKIP_DOWNLOAD=1 uses the files that are downloaded already"


class HubUnreachable(DsctlError):
    """The hub does not answer, so only files on the disk can be used."""


class WrongContent(Exception):
    """The content of a downloaded file does not have the checksum that the hub lists."""


@contextmanager
def explained(hub: str, what: str, folder: Path | None = None) -> Iterator[None]:
    """Turn exceptions of a hub library in this block into a `DsctlError`.

    `what` is the repository or file in use, and `folder` the local folder, for messages.
    """
    try:
        yield
    except DsctlError:
        raise
    except Exception as error:
        explanation = explain(hub, what, error, folder)
        if explanation is None:
            raise
        raise explanation from error


def explain(hub: str, what: str, error: BaseException, folder: Path | None = None) -> DsctlError | None:
    """Return the `DsctlError` for `error`; None if it is not an error of hub, network or disk."""
    names = {kind.__name__ for kind in type(error).__mro__}
    title = TITLES[hub]
    failed = getattr(error, "failed_files", None)
    if "FileDownloadError" in names and failed:
        path, first = next(iter(failed.items()))
        return explain(hub, f"{what}: {path}", first, folder)
    disk_error = _disk_error(error)
    if disk_error is not None:
        return write_error(Path(disk_error.filename) if disk_error.filename else (folder or Path()), disk_error)
    if isinstance(error, WrongContent) or "FileIntegrityError" in names or "Consistency check failed" in str(error):
        return DsctlError(
            f"{what} does not have the checksum that {title} lists, and was not kept",
            hint="run the command again; if it happens again, the file on the hub is damaged",
        )
    if "GatedRepoError" in names:
        return DsctlError(f"{what} is gated on {title}", hint=f"accept the terms on its page, then {TOKENS[hub]}")
    if "RevisionNotFoundError" in names:
        return DsctlError(f"{what} has no such revision on {title}", hint="check --revision")
    status = _status(error)
    if status == 401 or "AuthenticationError" in names:
        return DsctlError(f"{title} needs a token for {what}, or does not accept this one", hint=TOKENS[hub])
    if status == 403 or "PermissionDeniedError" in names:
        return DsctlError(
            f"{title} does not allow this for {what}", hint=f"check the permissions of the token: {TOKENS[hub]}"
        )
    if status == 404 or names & {"NotExistError", "RepositoryNotFoundError", "EntryNotFoundError"}:
        return DsctlError(
            f"{what} is not on {title}, or is private",
            hint=f"check the name, try the other hub with --source, or {TOKENS[hub]}",
        )
    if status == 429 or "RateLimitError" in names:
        return DsctlError(
            f"{title} limits the rate of requests ({what})", hint="wait some minutes, then run the command again"
        )
    if (status is not None and status >= 500) or names & {"ServerError", "StorageError"}:
        code = f" (status {status})" if status is not None else ""
        return HubUnreachable(
            f"{title} is out of order{code}: {what}",
            hint="run the command again later: it continues with the files that are downloaded already",
        )
    if "OfflineModeIsEnabled" in names:
        return HubUnreachable(
            f"{what} is not downloaded, and HF_HUB_OFFLINE forbids the network", hint="unset HF_HUB_OFFLINE"
        )
    if _is_network(error, names):
        return HubUnreachable(f"{title} cannot be reached at {way_to(hub)} for {what}", hint=OFFLINE)
    if status is not None:
        return DsctlError(f"{title} refused the request with status {status}: {what}", hint="check the names")
    if "HFValidationError" in names or "InvalidParameter" in names:
        return DsctlError(f"{what} is not a valid name on {title}", hint="write it as OWNER/NAME")
    cause = error.__cause__ or error.__context__
    return explain(hub, what, cause, folder) if cause is not None and cause is not error else None


def _disk_error(error: BaseException) -> OSError | None:
    """Return the error of the disk in the chain of causes of `error`, if there is one."""
    current: BaseException | None = error
    for _ in range(10):
        if isinstance(current, OSError) and current.errno in DISK:
            return current
        current = None if current is None else current.__cause__ or current.__context__
    return None


def _status(error: BaseException) -> int | None:
    for source in (getattr(error, "response", None), error):
        status = getattr(source, "status_code", None)
        if isinstance(status, int) and status >= 400:
            return status
    return None


def _is_network(error: BaseException, names: set[str]) -> bool:
    module = type(error).__module__.split(".")[0]
    from_library = module in ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3") and "Error" in str(
        names
    )
    return isinstance(error, ConnectionError | TimeoutError) or "NetworkError" in names or from_library
