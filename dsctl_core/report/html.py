"""Render self-contained HTML pages from the Jinja2 templates in `templates/`: light and dark, without scripts.

Jinja2 escapes all values except the SVG of `report.charts`, which is marked as Markup.
"""

from __future__ import annotations

import base64
import functools
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment
    from PIL.Image import Image

TEMPLATES = Path(__file__).with_name("templates")


@functools.cache
def environment() -> Environment:
    """Return the Jinja2 environment of the pages: it escapes all values, and an undefined name is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(template: str, title: str, **values: Any) -> str:
    """Return the HTML page for `template` (such as "run.html.j2") with `title` and `values`."""
    return environment().get_template(template).render(title=title, **values)


def image_url(image: Image, side: int) -> str:
    """Return a data: URL with the image, scaled down to at most `side` pixels per side."""
    small, stream = image.convert("RGB"), io.BytesIO()
    kind = "png" if max(small.size) <= side else "jpeg"
    small.thumbnail((side, side))
    small.save(stream, kind, **({"quality": 88} if kind == "jpeg" else {}))
    return data_url(stream.getvalue(), f"image/{kind}")


def data_url(data: bytes, media_type: str) -> str:
    """Return a data: URL with the bytes `data`."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"
