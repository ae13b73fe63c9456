"""The documentation site is built without a warning: no broken link, and every public name with its docstring."""

from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest

import dsctl_core
from dsctl_core.families import families

REPOSITORY = Path(__file__).parents[2]


class Page(HTMLParser):
    """The links and the anchors of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "src") and value:
                self.links.append(value)
            if name == "id" and value:
                self.anchors.add(value)


def broken(site: Path) -> list[str]:
    """Return the links of the pages in `site` that lead to no file or to no anchor."""
    pages = {page.resolve(): Page(page.read_text(encoding="utf-8")) for page in site.rglob("*.html")}
    found = []
    for page, read in pages.items():
        for link in read.links:
            target, anchor = urldefrag(unquote(link))
            if re.match(r"[a-z]+:|//", link) or target.startswith("/"):  # another site; the page for a wrong address
                continue
            place = (page.parent / target).resolve() if target else page
            place = place / "index.html" if place.is_dir() else place
            if not place.is_file() or (anchor and place in pages and anchor not in pages[place].anchors):
                found.append(f"{page.relative_to(site.resolve())}: {link}")
    return found


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    words = [sys.executable, str(REPOSITORY / "docs" / "build_site.py"), "--site-dir", str(folder)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_no_link_of_the_site_is_broken(site: Path):
    assert len(list(site.rglob("*.html"))) > 40
    assert broken(site) == []


def test_every_public_name_has_its_docstring_in_the_reference(site: Path):
    read = Page((site / "docs" / "reference" / "python" / "index.html").read_text(encoding="utf-8"))
    pipelines = {name for f in families().values() for name in (f.pipeline.partition(":")[2], *f.pipeline_aliases)}
    names = {name for name in dsctl_core.__all__ if not name.startswith("_")} | pipelines
    assert {"BasePipeline", "UnifiedDataset", "load_template_model"} <= names
    aliases = {alias for family in families().values() for alias in family.pipeline_aliases}
    documented = {anchor.rpartition(".")[2] for anchor in read.anchors if anchor.startswith("dsctl_core.")}
    assert [name for name in sorted(names) if name.lower() not in read.anchors] == []
    assert sorted(names - aliases - documented) == []


def test_every_page_of_the_documentation_is_in_the_navigation():
    navigation = (REPOSITORY / "docs" / "mkdocs.yml").read_text(encoding="utf-8")
    pages = [page.relative_to(REPOSITORY).as_posix() for page in (REPOSITORY / "docs").rglob("*.md")]
    assert len(pages) > 20
    assert [page for page in pages if page not in navigation] == []


def test_a_broken_link_and_a_missing_anchor_are_found(tmp_path: Path):
    (tmp_path / "index.html").write_text('<a href="gone/">x</a><a href="b.html#no">y</a><a href="b.html#yes">z</a>')
    (tmp_path / "b.html").write_text('<p id="yes"><a href="https://example.com/gone">x</a>')
    assert broken(tmp_path) == ["index.html: gone/", "index.html: b.html#no"]
