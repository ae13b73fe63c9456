"""Transfers are shown as lines in a log and as bars on a terminal, one for each file and one for all."""

from __future__ import annotations

from dsctl.transfers import TransferBars, TransferLines


def test_lines_say_what_begins_and_then_now_and_again():
    said: list[str] = []
    now = [0.0]
    lines = TransferLines(said.append, lambda: now[0])
    lines.start("Downloading a/b", {"x": 3_000_000_000, "y": 1000})
    lines.advance("x", 1_000_000)
    now[0] = 10.0
    lines.advance("x", 999_000_000)
    lines.finish()
    assert said == ["Downloading a/b: 2 files, 3 GB", "Downloading a/b: 1 GB of 3 GB, 100 MB/s  x"]


def test_bars_show_a_file_until_it_is_done_and_all_of_them_together():
    bars = TransferBars()
    bars.start("Downloading", {"x": 10, "y": 20})
    assert bars.live is not None
    bars.advance("x", 10)
    bars.advance("y", 5)
    tasks = {task.description: task for task in bars.live.tasks}
    assert (tasks["Downloading"].total, tasks["Downloading"].completed) == (30, 15)
    assert (tasks["x"].visible, tasks["y"].visible) == (False, True)
    bars.finish()
    bars.advance("y", 1)
