"""A run with mixed sizes, captions that vary and rows that cannot be used."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from dsctl_core.commands.train import train
from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.progress import NoProgress
from tests.dsctl_core.training.conftest import picture
from tests.dsctl_core.training.test_run import options


@pytest.fixture
def mixed_folder(tmp_path):
    """Pictures of three shapes with captions beside them."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    for index, size in enumerate([(48, 32), (32, 48), (48, 32), (40, 40), (32, 48), (96, 64), (48, 32)]):
        picture(*size, seed=index).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(f"number {index} " * (index + 1))
    return folder


class Notes(NoProgress):
    """Keeps what is said."""

    def __init__(self):
        self.notes = []

    def note(self, message):
        self.notes.append(message)


@pytest.mark.parametrize("sizes", [{}, {"bucket_resolutions": "32,48"}, {"max_pixels": 1536}])
def test_pictures_of_several_shapes_are_trained_in_batches(tiny_folder, mixed_folder, tmp_path, sizes):
    chosen = options(tiny_folder, mixed_folder, tmp_path / "out", batch_size=2, max_steps=None, num_epochs=2, **sizes)
    notes = Notes()
    result = train(chosen, notes)
    assert result.steps == 2 * (5 if sizes == {} else 4)
    assert notes.notes[0] == "Dataset: folder of 7 files with captions in .txt beside them"


def test_batches_and_workers_change_nothing_but_the_pace(tiny_folder, mixed_folder, tmp_path):
    losses = []
    for name, settings in {"a": {}, "b": {"dataset_num_workers": 2}}.items():
        chosen = options(
            tiny_folder,
            mixed_folder,
            tmp_path / name,
            batch_size=2,
            caption_dropout=0.3,
            caption_prefix="sks",
            **settings,
        )
        train(chosen)
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["loss"] for line in lines])
    assert losses[0] == losses[1]


LINES = ("two foxes", "in the snow", "at night")


@pytest.mark.parametrize("end", ["\r\n", "\r", "\u2028"])
def test_the_line_ends_of_captions_change_no_loss(tiny_folder, mixed_folder, tmp_path, end):
    losses = []
    for name, line_end in (("newline", "\n"), ("other", end)):
        for path in mixed_folder.glob("*.txt"):
            path.write_bytes((line_end.join(LINES) + line_end).encode())
        train(options(tiny_folder, mixed_folder, tmp_path / name))
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["loss"] for line in lines])
    assert losses[0] == losses[1]
    assert len(losses[0]) >= 2


def test_folders_that_repeat_their_rows_train_as_often_with_a_cache_and_without(tiny_folder, mixed_folder, tmp_path):
    for name, numbers in (("3_sks fox", (0, 2)), ("1_bird", (1,))):
        (tmp_path / "kohya" / name).mkdir(parents=True)
        for number in numbers:
            (mixed_folder / f"{number}.png").rename(tmp_path / "kohya" / name / f"{number}.png")
    losses = []
    for name, cache in (("cached", True), ("plain", False)):
        settings = {"max_steps": None, "num_epochs": 2, "cache": cache}
        result = train(options(tiny_folder, tmp_path / "kohya", tmp_path / name, **settings))
        assert result.steps == 2 * (3 * 2 + 1)
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["loss"] for line in lines])
    assert losses[0] == losses[1]
    assert (tmp_path / "cached" / "cache").is_dir()


def spoil(folder):
    """Leave four rows that can be used, one that cannot, and one whose damage only loading finds."""
    Image.new("RGB", (10, 10)).save(folder / "1.png")
    path = folder / "3.png"
    data = bytearray(path.read_bytes())
    middle = data.index(b"IDAT") + 40
    data[middle : middle + 30] = bytes(30)
    path.write_bytes(data)


def test_rows_that_cannot_be_used_stop_a_run_before_it_starts(tiny_folder, mixed_folder, tmp_path):
    spoil(mixed_folder)
    with pytest.raises(DsctlError, match=r"row 2 \(1.png\), image '1.png': the picture is 10x10"):
        train(options(tiny_folder, mixed_folder, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_all_rows_that_cannot_be_used_are_listed_before_the_first_step(tiny_folder, mixed_folder, tmp_path):
    spoil(mixed_folder)
    (mixed_folder / "5.txt").write_text("")
    notes = Notes()
    with pytest.raises(DsctlError, match=r"row 2 \(1.png\).* \(and 1 more: rows 6\)"):
        train(options(tiny_folder, mixed_folder, tmp_path / "out"), notes)
    assert [note.partition(",")[0].rpartition("row ")[2] for note in notes.notes[1:]] == ["2 (1.png)", "6 (5.png)"]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_while_loading_names_the_row_and_the_file(tiny_folder, mixed_folder, tmp_path, workers):
    spoil(mixed_folder)
    picture(48, 32, seed=1).save(mixed_folder / "1.png")
    chosen = options(tiny_folder, mixed_folder, tmp_path / "out", max_steps=7, dataset_num_workers=workers)
    with pytest.raises(DsctlError, match=r"row 4 \(3.png\), image '3.png': .*3.png is damaged or cut off") as caught:
        train(chosen)
    assert "download the file again" in caught.value.hint


@pytest.mark.parametrize(
    ("settings", "steps"),
    [({"cache": False}, 6), ({"cache": False, "batch_size": 2}, 3), ({}, 5), ({"batch_size": 2}, 3)],
    ids=str,
)
def test_rows_that_cannot_be_used_are_skipped_recorded_and_counted(
    tiny_folder, mixed_folder, tmp_path, settings, steps
):
    spoil(mixed_folder)
    chosen = options(
        tiny_folder,
        mixed_folder,
        tmp_path / "out",
        on_bad_sample="skip",
        max_steps=None,
        num_epochs=2,
        height=32,
        width=32,
        **settings,
    )
    result = train(chosen)
    lines = [json.loads(line) for line in (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()]
    assert result.skipped == len(lines) == 2
    assert [line["kind"] for line in lines] == ["size", "damaged file"]
    assert all({"problem", "hint", "kind"} == set(line) for line in lines)
    assert "row 2 (1.png), image '1.png'" in lines[0]["problem"]
    assert "row 4 (3.png), image '3.png'" in lines[1]["problem"]
    assert result.steps == 2 * steps  # a bad row's place is taken by another, unless a cache was made without it


def test_nothing_skipped_leaves_no_record(tiny_folder, dataset_folder, tmp_path):
    assert train(options(tiny_folder, dataset_folder, tmp_path / "out", on_bad_sample="skip")).skipped == 0
    assert not (tmp_path / "out" / "skipped.jsonl").exists()


def test_when_no_row_can_be_used_there_is_nothing_to_skip_to(tiny_folder, mixed_folder, tmp_path):
    for path in mixed_folder.glob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(DsctlError, match="has no row that can be used"):
        train(options(tiny_folder, mixed_folder, tmp_path / "out", on_bad_sample="skip"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("setting", [{"num_frames": 5}, {"fps": 8}, {"short_clips": "shorten"}])
def test_options_for_videos_have_no_effect_on_a_model_for_pictures(tiny_folder, dataset_folder, tmp_path, setting):
    with pytest.raises(UsageError, match=f"--{next(iter(setting)).replace('_', '-')} has no effect"):
        train(options(tiny_folder, dataset_folder, tmp_path / "out", **setting))
