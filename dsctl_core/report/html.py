"""HTML pages that need nothing beside them: one look for every report, light and dark, without scripts."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

# Colours of curves, told apart also by those who see red and green alike (Okabe and Ito 2008), lighter on dark.
STYLE = """
:root { color-scheme: light dark; --text: #1d2433; --back: #ffffff; --soft: #5a6478; --line: #d9dee8; --card: #f5f7fb;
  --bar: #4a6fd4; --error: #b3261e; --warning: #8a5a00;
  --c0: #0072b2; --c1: #d55e00; --c2: #009e73; --c3: #cc79a7; --c4: #8a7000; --c5: #5b4fc7 }
@media (prefers-color-scheme: dark) { :root { --text: #e6e9f0; --back: #14171f; --soft: #9aa5bb; --line: #343b4a;
  --card: #1c212c; --bar: #7d9bf0; --error: #ff8a80; --warning: #ffc266;
  --c0: #56b4e9; --c1: #ff9046; --c2: #33c79a; --c3: #e69bc3; --c4: #e0c64a; --c5: #a79df5 } }
* { box-sizing: border-box }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem; color: var(--text);
  background: var(--back); overflow-wrap: anywhere }
h1, h2, h3 { line-height: 1.25; margin: 1.6em 0 .5em } h1 { font-size: 1.6rem; margin-top: 0 } h2 { font-size: 1.2rem }
h3 { font-size: 1rem; margin-top: 1em } p { margin: .5em 0 } .soft, .hint, figcaption { color: var(--soft) }
table { border-collapse: collapse } .wide { width: 100% }
td, th { text-align: left; vertical-align: top; padding: .3rem 1.2rem .3rem 0; border-bottom: 1px solid var(--line) }
th { font-weight: 600; overflow-wrap: normal } .facts th { font-weight: 400; color: var(--soft); white-space: nowrap }
.error { color: var(--error) } .warning { color: var(--warning) }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .7rem; margin: 1rem 0 }
.cards div { background: var(--card); border-radius: 6px; padding: .6rem .8rem }
.cards b { display: block; font-size: 1.25rem; font-weight: 600 }
.cards span, .cards small { display: block; color: var(--soft); font-size: .85rem }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(24rem, 1fr)); gap: 0 2.5rem;
  align-items: start }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(26rem, 1fr)); gap: 1rem 1.6rem }
.chart { margin: 0 } .chart figcaption { color: var(--text); font-weight: 600 } svg { display: block; width: 100% }
svg text { fill: var(--soft); font-size: 12px } svg .grid { stroke: var(--line) }
svg polyline { fill: none; stroke-width: 2; stroke-linejoin: round } svg .raw { stroke-width: 1; opacity: .45 }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem } .legend i { display: inline-block; width: 1.1rem;
  height: .25rem; border-radius: 2px; vertical-align: middle; margin-right: .4rem }
.scroll { overflow-x: auto } .samples td, .samples th { padding: .25rem; border: 0; text-align: center }
.samples .prompt { text-align: left; min-width: 10rem; max-width: 16rem; padding-right: .8rem; vertical-align: middle }
.samples img { display: block; width: 144px; border-radius: 3px }
.bar { display: grid; grid-template-columns: 11rem 1fr 5rem; gap: .6rem; align-items: center }
.bar div { background: var(--bar); height: .8rem; border-radius: 2px; min-width: 1px }
.pictures { display: flex; flex-wrap: wrap; gap: .8rem } .pictures figure { margin: 0; width: 160px; font-size: 12px }
.pictures img { max-width: 160px; border-radius: 3px } .problems img { max-height: 72px }
details { margin: 1rem 0 } summary { cursor: pointer; font-weight: 600 }
@media (max-width: 40rem) { .charts { grid-template-columns: 1fr } .bar { grid-template-columns: 6rem 1fr 3rem } }
"""


def document(title: str, parts: Iterable[str]) -> str:
    """Return a whole page with `title`, which is text, above `parts`, which are HTML."""
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    head += f"<title>{escape(title)}</title><style>{STYLE}</style>"
    body = "\n".join([f"<h1>{escape(title)}</h1>", *(part for part in parts if part)])
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n{body}\n</body></html>\n'


def facts(rows: Iterable[tuple[str, object]]) -> str:
    """Return names and values, which are text, as a table."""
    cells = "".join(f"<tr><th>{escape(name)}</th><td>{escape(str(value))}</td></tr>" for name, value in rows)
    return f'<table class="facts">{cells}</table>' if cells else "<p>None.</p>"


def cards(values: Sequence[tuple[str, str, str]]) -> str:
    """Return the few numbers that matter most: of each its name, the number, and what else is to be said, as text."""
    shown = "".join(
        f"<div><span>{escape(name)}</span><b>{escape(value)}</b><small>{escape(more)}</small></div>"
        for name, value, more in values
    )
    return f'<div class="cards">{shown}</div>' if values else ""


def picture(image: Image, side: int, alt: str) -> str:
    """Return an <img> that holds the picture itself: every pixel, or scaled down to at most `side` pixels."""
    small, stream = image.convert("RGB"), io.BytesIO()
    kind = "png" if max(small.size) <= side else "jpeg"
    small.thumbnail((side, side))
    small.save(stream, kind, **({"quality": 88} if kind == "jpeg" else {}))
    data = base64.b64encode(stream.getvalue()).decode()
    return f'<img alt="{escape(alt)}" src="data:image/{kind};base64,{data}">'
