"""Render self-contained HTML pages from the Jinja2 templates in `templates/`: light and dark, without scripts.

Jinja2 escapes all values except the SVG of `report.charts`, which is marked as Markup.
"""

from __future__ import annotations

import base64
import functools
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsctl_core.files.ownership import Kind, generator_tag, page_kind

if TYPE_CHECKING:
    from jinja2 import Environment
    from PIL.Image import Image

TEMPLATES = Path(__file__).with_name("templates")
RUN_PAGE, DATASET_PAGE, CACHE_PAGE = (
    "dsctl report",
    "dsctl dataset validate, of a dataset",
    "dsctl dataset validate, of a cache",
)
GENERATORS = {
    "run.html.j2": RUN_PAGE,
    "runs.html.j2": RUN_PAGE,
    "dataset.html.j2": DATASET_PAGE,
    "cache.html.j2": CACHE_PAGE,
}
PAGE_KINDS: dict[str, Kind] = {name: page_kind(name) for name in (RUN_PAGE, DATASET_PAGE, CACHE_PAGE)}


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
    """Return the HTML page for `template` (such as "run.html.j2") with `title` and `values`.

    Its head names the command that wrote it: only a page that does may be written over by that command.
    """
    from markupsafe import Markup

    generator = Markup(generator_tag(GENERATORS[template]))
    return environment().get_template(template).render(title=title, generator=generator, **values)


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
