"""The server of the live page: uvicorn, on loopback only."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dsctl_core.errors import DsctlError
from dsctl_core.report.live.find import require_folders

if TYPE_CHECKING:
    from uvicorn import Server

ADDRESS = "127.0.0.1"


def serve(folders: Sequence[Path], port: int, started: Callable[[str], None]) -> None:
    """Serve the page about the runs in `folders` on loopback until it is interrupted; 0 as `port` takes a free one.

    `started` is called with the address when connections are taken. Raises DsctlError for a folder that is not there,
    for a port that is taken, and without Starlette and uvicorn.
    """
    server, listener = prepare(folders, port)
    with listener:
        started(f"http://{ADDRESS}:{listener.getsockname()[1]}/")
        server.run(sockets=[listener])


def prepare(folders: Sequence[Path], port: int) -> tuple[Server, socket.socket]:
    """Return the server for the runs in `folders`, and the socket at `port` that it is to be run with; see `serve`."""
    try:
        import uvicorn

        from dsctl_core.report.live.app import live_app
    except ImportError as error:
        raise DsctlError(
            "--serve needs starlette and uvicorn, which are not installed",
            hint='install them with: pip install "dsctl[serve]"; or leave it out, for a page in a file',
        ) from error
    app = live_app(require_folders(folders), "Runs in " + ", ".join(str(folder) for folder in folders))
    settings = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=0,  # at Ctrl-C: pages that are followed never end by themselves
    )
    return uvicorn.Server(settings), _listening(port)


def _listening(port: int) -> socket.socket:
    listener = socket.socket()
    try:
        if os.name == "posix":  # elsewhere it would let two servers share the port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((ADDRESS, port))
        listener.listen()
    except OSError as error:
        listener.close()
        raise DsctlError(
            f"port {port} cannot be used: {error.strerror}",
            hint="give another --port, or --port 0 for any that is free",
        ) from error
    return listener
