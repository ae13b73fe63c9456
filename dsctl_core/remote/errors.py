"""Say in one line what went wrong with a remote file."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Iterator

from dsctl_core.errors import DsctlError, masked
from dsctl_core.remote.address import scheme_of

CREDENTIALS = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS, or log in with `gcloud auth application-default login`",
    "gcs": "set GOOGLE_APPLICATION_CREDENTIALS, or log in with `gcloud auth application-default login`",
    "hf": "set HF_TOKEN, or log in with `hf auth login`",
    "modelscope": "set MODELSCOPE_API_TOKEN, or log in with `modelscope login`",
}
# Errors of the client libraries by name: the libraries are optional, so their classes may not be there.
NO_CREDENTIALS = {"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "ProfileNotFound"}
BAD_CREDENTIALS = {"DefaultCredentialsError", "MalformedError"}  # of google.auth; they say what is wrong with them
NOT_FOUND = {"RepositoryNotFoundError", "RevisionNotFoundError", "EntryNotFoundError", "GatedRepoError"}
PASSING = {"ClientPayloadError", "ServerDisconnectedError", "ClientOSError", "ClientConnectionError"}
PASSING |= {"ConnectTimeoutError", "ReadTimeoutError", "EndpointConnectionError", "ConnectionClosedError"}
PASSING |= {"ResponseStreamingError", "IncompleteReadError", "HTTPClientError", "AioReadTimeoutError"}
PASSING |= {"SocketTimeoutError", "ServerTimeoutError", "ConnectionTimeoutError", "ClientConnectorError"}
PASSING |= {"ConnectError", "ReadError", "RemoteProtocolError", "ReadTimeout", "ConnectTimeout", "ContentLengthError"}
PASSING |= {"ConnectionError", "ChunkedEncodingError", "ProtocolError"}  # of requests, not the built-in ones
PASSING |= {"ClientConnectorDNSError"}  # also without a network a name service says that there is no such host
PASSING_STATUS = {408, 425, 429, 500, 502, 503, 504}


class RemoteError(DsctlError):
    """Error of a remote file, its store, or the way to it."""


class RemoteMissing(RemoteError):
    """There is no file at the address."""


class RemoteChanged(RemoteError):
    """The file is another than when it was looked at: its ETag or version, or its size, has changed."""


class RemoteExists(RemoteError):
    """The file was to be created, or to replace a certain version, and another writer was faster."""


class RemoteUnreachable(RemoteError):
    """The store did not answer, or not to the end, however often it was asked."""


class Short(OSError):
    """An answer had fewer bytes than it should."""


def changed(address: str) -> RemoteChanged:
    """Return the error for a file that was replaced since it was listed."""
    return RemoteChanged(
        f"{address} was changed while it was in use: its version or size is not what it was",
        hint="let nothing write there during a run, and run the command again",
    )


def is_passing(error: BaseException) -> bool:
    """Return whether to try again may help: for errors of the connection, time-outs and statuses such as 503."""
    for each in _causes(error):
        status = status_of(each)
        if status is not None:
            return status in PASSING_STATUS
        if isinstance(each, FileNotFoundError | PermissionError | FileExistsError):
            return False
        if isinstance(each, Short | ConnectionError | TimeoutError | asyncio.TimeoutError):
            return True
        if type(each).__name__ in PASSING:
            return True
        if isinstance(each, OSError) and each.errno in (errno.EBUSY, errno.EREMOTEIO, errno.ETIMEDOUT):
            return True
    return False


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status that an error has, in the form of botocore, aiohttp, httpx or gcsfs."""
    if type(error).__name__ in PASSING:
        return None  # aiohttp gives a body that was cut off the code 400
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return status if isinstance(status, int) else None
    for source in (error, response):
        for name in ("status", "status_code", "code"):
            status = getattr(source, name, None)
            if isinstance(status, int) and 400 <= status < 600:
                return status
    return None


def explain(address: str, error: BaseException) -> RemoteError:
    """Return the error to show for `error`, which came of a request about `address`."""
    names = {type(each).__name__ for each in _causes(error)}
    status = next((found for each in _causes(error) if (found := status_of(each)) is not None), None)
    login = CREDENTIALS.get(scheme_of(address), "give the client library of the store its credentials")
    if isinstance(error, FileNotFoundError) or status == 404 or names & NOT_FOUND:
        return RemoteMissing(f"{address} does not exist", hint=f"check the address; if it is private, {login}")
    if names & NO_CREDENTIALS:
        return RemoteError(f"{address} cannot be read: there are no credentials", hint=login)
    if names & BAD_CREDENTIALS:
        return RemoteError(f"{address} cannot be used: {_line(error)}", hint=login)
    if isinstance(error, PermissionError) or status in (401, 403):
        return RemoteError(f"{address} cannot be used: the store refuses these credentials", hint=login)
    if isinstance(error, FileExistsError) or status in (409, 412):
        return RemoteExists(
            f"{address} was not written: another writer has put something else there",
            hint="see what is there, or choose another address",
        )
    if is_passing(error):
        return RemoteUnreachable(
            f"{address} cannot be reached: {_line(error)}",
            hint="check the network and the address of the store, then run the command again: it goes on from there",
        )
    return RemoteError(f"{address} cannot be used: {_line(error)}", hint="check the address and the store's settings")


def _line(error: BaseException) -> str:
    status = next((found for each in _causes(error) if (found := status_of(each)) is not None), None)
    text = error.args[0] if len(error.args) > 1 and isinstance(error.args[0], str) else str(error)
    about = masked(" ".join(text.split()))[:200] or type(error).__name__
    return f"status {status}, {about}" if status is not None else about


def _causes(error: BaseException) -> Iterator[BaseException]:
    current: BaseException | None = error
    for _ in range(5):
        if current is None:
            return
        yield current
        current = current.__cause__ or current.__context__
