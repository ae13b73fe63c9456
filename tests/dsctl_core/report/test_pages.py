"""No text from outside is HTML in a page, of a dataset and of a cache too, and every template escapes."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from dsctl_core.cache.verify import Problem as CacheProblem
from dsctl_core.data.inspection import inspect
from dsctl_core.data.summary import summarize
from dsctl_core.data.validated import Problem, Sample, Validation
from dsctl_core.report.cache import cache_page
from dsctl_core.report.charts import Curve, chart
from dsctl_core.report.dataset import report_page
from dsctl_core.report.html import TEMPLATES, environment
from tests.dsctl_core.report.html_page import NASTY, Page

BREAKS_OUT = "\"><b onclick='x'>"  # of an attribute


def written_out(html: str, times: int) -> Page:
    """Return the page; the hostile texts stand in it `times` times at least, as text, and open no tag."""
    page = Page(html)
    assert not {"script", "b"} & set(page.tags)
    assert page.open == []
    assert page.text.count(NASTY) >= times
    return page


def test_nothing_of_a_dataset_is_taken_for_html(tmp_path: Path):
    file = tmp_path / f"{NASTY.replace('/', '')}{BREAKS_OUT}.png"
    Image.new("RGB", (32, 32), "red").save(file)
    problem = Problem(NASTY, "error", f"{NASTY} {file}", NASTY, 1, str(file))
    sample = Sample(0, (NASTY,), [(32, 32)])
    found = Validation(1, NASTY, [problem], [sample], {file: inspect(file, False)}, {file: [0]})
    page = written_out(report_page(found, summarize(found), f"Dataset {NASTY}{BREAKS_OUT}", videos=False), 6)
    assert page.tags.count("img") == 2
    assert f"Dataset {NASTY}{BREAKS_OUT}" in page.words
    assert BREAKS_OUT in page.text


def test_a_sample_of_a_dataset_has_the_name_of_its_file_and_one_error_is_one(tmp_path: Path):
    file = tmp_path / "red.png"
    Image.new("RGB", (32, 32), "red").save(file)
    problem = Problem("kind", "error", "what", "how", 1, None)
    sample = Sample(0, ("a caption",), [(32, 32)])
    found = Validation(1, "table", [problem], [sample], {file: inspect(file, False)}, {file: [0]})
    html = report_page(found, summarize(found), "Dataset", videos=False)
    assert f'<strong title="{file}">red.png</strong><br>a caption' in html
    assert "1 error, 0 warnings." in html


def test_words_in_a_table_stay_whole_and_the_table_scrolls():
    style = (TEMPLATES / "style.css").read_text(encoding="utf-8")
    assert "th, td { overflow-wrap: normal }" in style
    for name in ("dataset.html.j2", "cache.html.j2"):
        text = (TEMPLATES / name).read_text(encoding="utf-8")
        assert text.count("<table") == text.count('<div class="scroll"><table') == 1


def test_nothing_of_a_cache_is_taken_for_html():
    problem = CacheProblem(Path(NASTY), NASTY, NASTY, NASTY)
    summary = {"family": NASTY, "task": BREAKS_OUT, "bytes": 10}
    pictures = [(0, Image.new("RGB", (8, 8)))]
    page = written_out(cache_page(Path(f"{NASTY}{BREAKS_OUT}"), summary, [problem], NASTY, pictures), 6)
    assert page.tags.count("img") == 1
    assert BREAKS_OUT in page.words


def test_nothing_of_a_curve_is_taken_for_html():
    names = (f"{NASTY}{BREAKS_OUT}", "{0} {colour!r}")
    page = written_out(chart(NASTY, [Curve(name, [(1, 2.0), (2, 3.0)]) for name in names]), 3)
    assert any("{0} {colour!r}, step 1: 2" in word for word in page.words)


def test_every_template_escapes_and_a_name_that_is_not_there_is_an_error():
    texts = {path.name: path.read_text(encoding="utf-8") for path in TEMPLATES.iterdir()}
    assert {"page.html.j2", "run.html.j2", "runs.html.j2", "dataset.html.j2", "cache.html.j2"} <= set(texts)
    assert {name: text for name, text in texts.items() if "safe" in text or "autoescape" in text} == {}
    assert environment().autoescape is True
    assert environment().undefined.__name__ == "StrictUndefined"
