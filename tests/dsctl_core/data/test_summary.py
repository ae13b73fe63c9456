"""The statistics of a dataset are those that the standard library counts, one by one."""

from __future__ import annotations

import re
import statistics
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from dsctl_core.data.inspection import FileFacts
from dsctl_core.data.summary import captions_table, lines_of, summarize
from dsctl_core.data.validated import Problem, Sample, Validation
from dsctl_core.report.dataset import histogram


def validated(draw: Random, rows: int) -> Validation:
    """Return what a validation of `rows` rows might have found."""
    sizes = [(draw.choice((64, 96, 128)), draw.choice((64, 80))) for _ in range(rows)]
    files = {
        Path(f"{n}.png"): FileFacts(size, draw.randrange(10**12), b"", "PNG", "PNG") for n, size in enumerate(sizes)
    }
    prompts = [("word " * draw.randrange(40),) * draw.randrange(3) for _ in range(rows)]
    samples = [
        Sample(n, prompts[n], [(*size, 9), size] if draw.random() < 0.3 else [size] * (draw.random() < 0.9))
        for n, size in enumerate(sizes)
    ]
    problems = [Problem("same row", "warning", "message", None)] * draw.randrange(3)
    return Validation(rows, "table", problems, samples, files, {})


def text(size: tuple) -> str:
    return "x".join(map(str, size))


@pytest.mark.parametrize("seed", range(20))
def test_a_summary_has_the_counts_in_order_and_the_spread_of_captions(seed: int):
    draw = Random(seed)
    found = validated(draw, draw.randrange(40))
    summary = summarize(found)
    resolutions = Counter(text(facts.size) for facts in found.files.values()).most_common()
    assert list(summary["resolutions"].items()) == resolutions
    buckets = Counter(" + ".join(map(text, each.sizes)) for each in found.samples if each.sizes).most_common()
    assert list(summary["buckets"].items()) == buckets
    assert summary["file_bytes"] == sum(facts.file_bytes for facts in found.files.values())
    words = [len(prompt.split()) for each in found.samples for prompt in each.prompts]
    if words:
        mean = round(sum(words) / len(words), 1)
        expected = {"min": min(words), "median": statistics.median(words), "mean": mean, "max": max(words)}
        assert summary["caption_words"] == expected
    else:
        assert summary["caption_words"] is None
    kinds = {type(value) for value in (summary["file_bytes"], *summary["resolutions"].values())}
    assert kinds == {int}, "JSON has no numbers of numpy"
    bars = histogram(captions_table(found)["words"])
    assert (sum(bars.values()), len(bars) <= 16) == (len(words), True)
    for name, count in bars.items():
        first, _, last = name.partition(" to ")
        assert count == sum(int(first) <= n <= int(last or first) for n in words)


def test_nothing_has_a_summary_of_zeros():
    summary = summarize(Validation(0, "", [], [], {}, {}))
    assert (summary["files"], summary["file_bytes"], summary["resolutions"], summary["buckets"]) == (0, 0, {}, {})
    assert summary["caption_words"] is None and summary["caption_characters"] is None


@pytest.mark.parametrize("seed", range(20))
def test_one_of_a_kind_is_told_in_the_singular_and_the_half_of_the_captions_is_right(seed: int):
    found = validated(Random(seed), seed % 3)
    lines = lines_of(found, summarize(found))
    assert not re.search(r"(?<![\dx.:] )(?<![\d.])\b1 [a-z]+s\b", "\n".join(lines)), lines
    words = [len(prompt.split()) for each in found.samples for prompt in each.prompts]
    (captions,) = [line for line in lines if line.startswith("captions")] or [None]
    if not words:
        assert captions is None
    elif min(words) == max(words):
        assert captions == f"captions  {words[0]} word{'s' * (words[0] != 1)} each"
    else:
        least, most, half = map(
            float, re.fullmatch(r"captions  (\d+) to (\d+) words?, .* at most (.*)", captions).groups()
        )
        assert (least, most) == (min(words), max(words))
        assert 2 * sum(each <= half for each in words) >= len(words)
