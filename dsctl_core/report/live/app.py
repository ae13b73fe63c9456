"""The application of the live page: the page, its samples, and news of the runs as server-sent events."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from dsctl_core.report.html import TEMPLATES
from dsctl_core.report.live.access import OwnPageOnly
from dsctl_core.report.live.runs import Watched
from dsctl_core.report.live.sections import page, sections

PAUSE, REST = 1.0, 5.0  # seconds between two looks at the runs, or so many times as long as a look takes
HEARTBEAT = 15.0  # seconds without news after which a comment keeps the connection open
MOST_PAGES = 16  # that are followed at a time
ASSETS = {"style.css": ("text/css", ("style.css", "live.css")), "live.js": ("text/javascript", ("live.js",))}


def live_app(roots: Sequence[Path], title: str) -> Starlette:
    """Return the application that serves the page about the runs in `roots`, which are absolute paths."""
    watched, html, followed = Watched(roots), page(title).encode("utf-8", "replace"), [0]

    def index(request: Request) -> Response:
        return Response(html, media_type="text/html", headers={"cache-control": "no-store"})

    def asset(request: Request) -> Response:
        kind, names = ASSETS[request.url.path.lstrip("/")]
        text = "".join((TEMPLATES / name).read_text(encoding="utf-8") for name in names)
        return Response(text, media_type=kind, headers={"cache-control": "no-cache"})

    def sample(request: Request) -> Response:
        values = request.path_params
        found = watched.sample(values["key"], _whole(values["number"]), _whole(values["step"]))
        if found is None or found.path.is_symlink() or not found.path.is_file():
            return PlainTextResponse("no such sample\n", status_code=404)
        headers = {"cache-control": "private, max-age=86400"}  # the address has the time of the last change
        return FileResponse(found.path, media_type=found.media_type, headers=headers)

    async def events(request: Request) -> Response:
        if followed[0] >= MOST_PAGES:
            return PlainTextResponse("too many pages are open\n", status_code=503)
        wanted = request.query_params.get("runs", "").split(",")
        return StreamingResponse(
            _counted(_news(watched, wanted), followed),
            media_type="text/event-stream",
            headers={"cache-control": "no-store"},
        )

    return Starlette(
        routes=[
            Route("/", index),
            *(Route(f"/{name}", asset) for name in ASSETS),
            Route("/samples/{key}/{number}/{step}", sample),
            Route("/events", events),
        ],
        middleware=[Middleware(OwnPageOnly)],
    )


def _whole(text: str) -> int:
    """Return the number in an address; -1, which no sample has, for anything else and for one with too many digits."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else -1


async def _counted(news: AsyncIterator[bytes], followed: list[int]) -> AsyncIterator[bytes]:
    followed[0] += 1
    try:
        async for each in news:
            yield each
    finally:
        followed[0] -= 1


async def _news(watched: Watched, wanted: Sequence[str]) -> AsyncIterator[bytes]:
    """Yield each section as a server-sent event, at first and whenever it has changed."""
    sent: dict[str, str] = {}
    last = time.monotonic()
    while True:
        began = time.monotonic()
        made = await asyncio.to_thread(lambda: sections(watched.runs(), wanted))
        took = time.monotonic() - began
        for name, content in made.items():
            if sent.get(name) != content:
                yield f"event: section\ndata: {json.dumps({'name': name, 'content': content})}\n\n".encode()
                last = time.monotonic()
        sent = made
        if time.monotonic() - last > HEARTBEAT:
            yield b": still here\n\n"
            last = time.monotonic()
        await asyncio.sleep(max(PAUSE, REST * took))
