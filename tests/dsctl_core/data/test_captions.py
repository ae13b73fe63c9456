"""Captions: words around them, several of them, none of them; always a function of the seed."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from dsctl_core.data import Captions, UnifiedDataset
from dsctl_core.errors import DsctlError, UsageError


@pytest.mark.parametrize(
    ("prefix", "suffix", "prompt"),
    [
        ("", "", "a dog"),
        ("sks", "", "sks a dog"),
        ("sks, ", "", "sks, a dog"),
        ("", "in pixel art", "a dog in pixel art"),
        ("sks", ", 4k", "sks a dog, 4k"),
    ],
)
def test_words_around_a_caption_are_joined_by_one_space(prefix, suffix, prompt):
    assert Captions(prefix, suffix).choose("a dog", seed=1) == prompt


def test_a_prompt_depends_on_the_seed_alone():
    captions = Captions(dropout=0.3)
    first = [captions.choose(["a", "b", "c"], seed) for seed in range(1000)]
    assert first == [Captions(dropout=0.3).choose(["a", "b", "c"], seed) for seed in range(1000)]
    counts = {text: first.count(text) for text in ("", "a", "b", "c")}
    assert sum(counts.values()) == 1000
    assert abs(counts[""] - 300) < 60
    assert all(abs(counts[text] - 233) < 60 for text in "abc")


def test_dropout_leaves_the_trigger_word_out_too():
    assert Captions(prefix="sks", dropout=1.0).choose("a dog", 0) == ""
    assert Captions(prefix="sks", dropout=0.0).choose("a dog", 0) == "sks a dog"


@pytest.mark.parametrize(
    ("cell", "problem"),
    [([], "list of captions is empty"), (["a", ""], "cell is empty"), (["a", 7], "the number 7"), (None, "is empty")],
)
def test_every_caption_of_a_row_must_say_something(cell, problem):
    with pytest.raises(DsctlError, match=problem):
        Captions().texts(cell)


def test_a_dropout_that_is_no_probability_is_refused():
    with pytest.raises(UsageError, match="is not a probability"):
        Captions(dropout=1.5)


def test_a_row_with_several_captions_gives_another_one_with_another_seed(tmp_path):
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    row = {"image": "a.png", "prompt": ["one", "two", "three"]}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row))
    dataset = UnifiedDataset(tmp_path, repeat=50, captions=Captions(prefix="x"))
    assert {row["prompt"] for row in dataset} == {"x one", "x two", "x three"}
    assert [dataset.sample(0, seed)["prompt"] for seed in range(9)] == [
        dataset.sample(20, seed)["prompt"] for seed in range(9)
    ]
