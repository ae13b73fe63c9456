"""Builds the documentation site into build/site: gathers the pages, then runs `mkdocs build --strict`.

Pages keep their places relative to the repository's root, so that their links stay valid; what they link to comes with
them. In docs/reference/python.md the docstring of each public name is put in by mkdocstrings.
"""

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCES = ROOT / "build" / "site_sources"
PAGES = ("*.md", "docs/**/*.md", "examples/**/*.md", "benchmarks/*.md", "dsctl_core/families/*/README.md")
LINK = re.compile(r"(\]\()([^)#\s]+)(#[^)]*)?(\))")
# A name, the first paragraph of its docstring, and where that is: on the site, a heading with the whole docstring.
DOCSTRING = re.compile(r"^## (\w+)\n\n[^\n]+\n\n<!-- docstring of (\S+) -->$", re.MULTILINE)


def pages() -> list[Path]:
    """Return every page, relative to the root."""
    return sorted({page.relative_to(ROOT) for pattern in PAGES for page in ROOT.glob(pattern)})


def gather(target: Path) -> None:
    """Copy all pages, and the files that they link to, into the folder `target`."""
    shutil.rmtree(target, ignore_errors=True)
    for page in pages():
        text = (ROOT / page).read_text(encoding="utf-8")
        copy = target / page
        copy.parent.mkdir(parents=True, exist_ok=True)
        text = LINK.sub(lambda found, page=page: _linked(found, page, target), text)
        text = DOCSTRING.sub(lambda found: f'<a id="{found[1].lower()}"></a>\n\n::: {found[2]}', text)
        copy.write_text(text, encoding="utf-8")


def _linked(found: re.Match[str], page: Path, target: Path) -> str:
    """Return a link as the site has it, after copying the file that it leads to; a folder is its README.md."""
    start, link, anchor, end = found[1], found[2], found[3] or "", found[4]
    if "://" in link:
        return found[0]
    place = (ROOT / page.parent / link).resolve()
    if place.is_dir() and (place / "README.md").is_file():
        link = f"{link.rstrip('/')}/README.md"
    elif place.is_dir():
        return f"{start}{link.rstrip('/')}/{_listing(place, target)}{end}"
    elif place.is_file() and place.suffix != ".md":
        copy = target / place.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(place, copy)
    return f"{start}{link}{anchor}{end}"


def _listing(folder: Path, target: Path) -> str:
    """Write a page with the names of the files in `folder`, and return its name."""
    page = target / folder.relative_to(ROOT) / "files.md"
    page.parent.mkdir(parents=True, exist_ok=True)
    names = sorted(each.name for each in folder.iterdir() if not each.name.startswith((".", "_")))
    lines = "\n".join(f"- `{name}`" for name in names)
    page.write_text(f"# {folder.relative_to(ROOT)}\n\n{lines}\n", encoding="utf-8")
    return page.name


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--site-dir", type=Path, default=ROOT / "build" / "site", help="folder of the site")
    site = parser.parse_args().site_dir.resolve()
    gather(SOURCES)
    words = ["-m", "mkdocs", "build", "--strict", "--quiet", "--config-file", str(ROOT / "docs" / "mkdocs.yml")]
    done = subprocess.run([sys.executable, *words, "--site-dir", str(site)], cwd=ROOT)
    if done.returncode == 0:
        print(site / "index.html")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
