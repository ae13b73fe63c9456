"""Create the page for a cache: its statistics, its problems, and images decoded from its latents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsctl_core.errors import for_people
from dsctl_core.readable import readable_bytes
from dsctl_core.report.html import image_url, render

if TYPE_CHECKING:
    from PIL.Image import Image

    from dsctl_core.cache.verify import Problem

SIDE = 160  # side of an image in the page, in pixels


def cache_page(
    cache: Path,
    summary: Mapping[str, Any],
    problems: Sequence[Problem],
    latents: str | None,
    pictures: Sequence[tuple[int, Image]],
) -> str:
    """Return the HTML page for the cache in the folder `cache`.

    `latents` are the shapes of its latents as text (None: unknown), `pictures` are (row, decoded image).
    """
    shown = {**summary, **({"bytes": readable_bytes(summary["bytes"])} if summary else {})}
    rows = [(name.replace("_", " "), str(value)) for name, value in shown.items()]
    figures = [
        {"alt": f"row {row + 1}", "source": image_url(image, SIDE), "caption": f"row {row + 1}"}
        for row, image in pictures
    ]
    return render(
        "cache.html.j2",
        f"Cache {for_people(str(cache))}",
        rows=[*rows, *([] if latents is None else [("latents", latents)])],
        problems=problems,
        shown=figures,
    )
