"""A long job is a bar on a terminal and a line now and then in a log."""

from __future__ import annotations

import io
import sys
from types import SimpleNamespace

import pytest

from dsctl import progress
from dsctl.progress import EVERY, GAP, Bar, Job, Lines, job_line


class Clock:
    """A clock that goes when it is told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def written() -> list[str]:
    return []


@pytest.fixture
def lines(written: list[str], clock: Clock) -> Lines:
    return Lines(written.append, clock)


def test_a_line_comes_at_most_so_often_and_says_how_far_and_how_fast(lines: Lines, written: list[str], clock: Clock):
    lines.start("Training", 40)
    for _ in range(20):
        clock.now += EVERY / 10
        lines.advance(loss=0.125, lr=1e-4)
    assert written == [
        "Training 10/40  loss 0.125  lr 0.0001  0.5 s/step  0:15 left",
        "Training 20/40  loss 0.125  lr 0.0001  0.5 s/step  0:10 left",
    ]


def test_what_was_done_before_a_run_went_on_counts_but_not_for_its_pace(lines: Lines, written: list[str], clock: Clock):
    lines.start("Training", 100, 90)
    clock.now = EVERY
    lines.advance()
    assert written == ["Training 91/100  5 s/step  0:45 left"]


def test_a_bar_goes_on_where_the_work_was_left(monkeypatch: pytest.MonkeyPatch):
    seconds = iter([100.0, 102.0])
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    bar = Bar()
    bar.start("Training", 100, 90)
    assert bar.live is not None
    bar.advance()
    bar.finish()
    assert [part for part, kind in job_line(bar.job, 200) if kind != "bar"] == [
        "Training",
        "91/100",
        "2 s/step",
        "0:18 left",
    ]


def test_the_end_is_told_once(lines: Lines, written: list[str], clock: Clock):
    lines.start("Training", 2)
    clock.now = 2.0
    lines.advance(2, loss=0.5)
    lines.finish()
    lines.finish()
    assert written == ["Training 2/2  loss 0.5  1 s/step"]


def test_a_job_that_takes_no_time_says_nothing(lines: Lines, written: list[str], clock: Clock):
    lines.start("Checking", 10)
    clock.now = 0.5
    lines.advance(10)
    lines.finish()
    assert written == []


def test_a_job_of_unknown_length_has_no_end_in_sight(lines: Lines, written: list[str], clock: Clock):
    lines.start("Reading", None)
    clock.now = EVERY
    lines.advance(5)
    assert written == ["Reading 5  1 s/step"]


def test_a_new_job_ends_the_one_before(lines: Lines, written: list[str], clock: Clock):
    lines.start("First", 4)
    clock.now = 2.0
    lines.advance()
    lines.start("Second", 4)
    assert written == ["First 1/4  2 s/step  0:06 left"]


def test_a_bar_shows_values_pace_and_notes(monkeypatch: pytest.MonkeyPatch):
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    bar = Bar()
    bar.note("Loading [tiny]")
    bar.start("Training", 2)
    bar.advance(loss=0.25, picture="1/2")
    bar.note("A word")
    bar.advance()
    bar.finish()
    bar.finish()
    shown = screen.getvalue()
    assert "Loading [tiny]\n" in shown
    assert "A word" in shown
    last = shown[shown.rindex("Training") :]
    for part in ("2/2", "loss 0.25  picture 1/2", "s/step", "0:00 left"):
        assert part in last


REAL = {"loss": 0.9388, "lr": 0.001, "samples/s": 0.118, "peak memory": "23.6 GB"}
JOBS = {
    "training": (Job("Training", 12_000, "step", 11_802, 0, 99_612.0), REAL),
    "validation of a bucket": (Job("Measuring the validation loss", 200, "step", 20, 0, 31.0), REAL),
    "resumed": (Job("Training", 200, "step", 120, 100, 8.8), REAL),
    "files": (Job("Checking the dataset", 250_000, "row", 1_250, 0, 61.5), {}),
    "pictures": (Job("Denoising", 400, "step", 33, 0, 70.0), {"picture": "2/8"}),
    "unknown": (Job("Reading the cache", None, "step", 7, 0, 2.0), {}),
    "wide": (Job("画像を読み込んでいます" * 4, 90, "file", 3, 0, 1.0), {}),
}


@pytest.mark.parametrize("name", JOBS)
def test_a_line_fits_any_width_and_never_goes_without_its_count_and_the_time_left(name: str):
    from rich.cells import cell_len

    job, fields = JOBS[name]
    job.advance(0, job.seconds, fields)
    before: set[str] = set()
    for width in range(40, 201):
        parts = job_line(job, width, cell_len)
        texts = [text for text, kind in parts if kind != "bar"]
        assert cell_len(GAP.join(text for text, _ in parts)) <= width
        assert job.count in texts
        assert job.left in texts or job.total is None
        values = set(texts) - {job.what} - {text for text in texts if text.endswith("…")}
        assert before <= values, "what a narrow line shows, a wide one shows too"
        before = values
    assert before >= {job.pace, *job.values.values()}


@pytest.mark.parametrize(
    ("width", "shown"),
    [
        (60, "Training  11802/12000  loss 0.9388  8.44 s/step  27:51 left"),
        (80, "Training  ━━━━━━━━━━━━━━━━━━╌  11802/12000  loss 0.9388  8.44 s/step  27:51 left"),
        (200, "11802/12000  loss 0.9388  lr 0.001  samples/s 0.118  peak memory 23.6 GB  8.44 s/step  27:51 left"),
    ],
)
def test_memory_rate_and_samples_go_first(width: int, shown: str):
    job, fields = JOBS["training"]
    job.advance(0, job.seconds, fields)
    line = GAP.join(text for text, _ in job_line(job, width))
    assert line.endswith(shown) if width == 200 else line == shown


def test_the_pace_of_steps_is_seconds_and_that_of_other_things_how_many_a_second(
    lines: Lines, written: list[str], clock: Clock
):
    lines.start("Checking the dataset", 100, unit="row")
    clock.now = EVERY
    lines.advance(50)
    assert written == ["Checking the dataset 50/100  10 rows/s  0:05 left"]


def test_what_is_reported_outside_a_job_is_ignored():
    Bar().advance()
    Bar().finish()
