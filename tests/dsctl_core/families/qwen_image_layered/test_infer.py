"""`dsctl infer` and `dsctl dataset validate` with layers: files, transparency, metadata, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dsctl_core.commands.dataset import validate
from dsctl_core.commands.infer import infer
from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.files.png import about_picture
from dsctl_core.options import DatasetValidateOptions, InferOptions
from tests.dsctl_core.families.qwen_image_layered.conftest import SAID, Pair, layer


def asked(pair: Pair, tmp_path: Path, **options: Any) -> InferOptions:
    layer(100, 70, 3).save(tmp_path / "a.png")
    usual = {"model": str(pair.folder), "edit_image": (tmp_path / "a.png",), "height": 64, "width": 96, "layers": 2}
    usual |= {"num_inference_steps": 1, "device": "cpu", "output": tmp_path / "out.png"}
    return InferOptions(**{**usual, **options})


def test_each_picture_is_a_composite_and_its_layers_beside_it(pair: Pair, tmp_path: Path) -> None:
    made = infer(asked(pair, tmp_path, prompt="a fox", num_images=2, grid=True))
    names = ["out-001", "out-001-layer-1", "out-001-layer-2", "out-002", "out-002-layer-1", "out-002-layer-2"]
    assert [path.name for path in made.files] == [f"{name}.png" for name in names]
    pictures = [Image.open(path) for path in made.files]
    assert {(picture.size, picture.mode) for picture in pictures} == {((96, 64), "RGBA")}
    for whole, lower, upper in (pictures[:3], pictures[3:]):
        assert np.array_equal(Image.alpha_composite(lower, upper), whole)
        assert lower.getchannel("A").getextrema()[0] < 255, "the random model makes something transparent"
    assert pictures[1].tobytes() != pictures[4].tobytes(), "each has a seed of its own"
    about = [about_picture(path) for path in made.files]
    assert [each.get("layer") for each in about] == [None, 1, 2] * 2
    assert {(each["layers"], each["prompt"], each["edit_image"][0]) for each in about} == {
        (2, "a fox", str(tmp_path / "a.png"))
    }
    assert made.grid == tmp_path / "out.png"
    with Image.open(tmp_path / "out.png") as sheet:
        assert sheet.size == (3 * 96 + 2 * 4, 2 * 64 + 4), "a row for each picture: the composite and two layers"


def test_without_a_prompt_the_picture_is_described_first(pair: Pair, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as during:
        during.setattr("dsctl_core.families.qwen_image_layered.captions.MOST_TOKENS", SAID)
        made = infer(asked(pair, tmp_path, layers=1))
    picture = Image.open(tmp_path / "a.png")
    caption = about_picture(made.files[1])["prompt"]
    assert caption == pair.ours.caption(picture, 64, 96)
    options: dict[str, Any] = {"edit_image": picture, "layers": 1, "height": 64, "width": 96, "num_inference_steps": 1}
    with Image.open(made.files[1]) as own:
        expected = pair.ours(caption, negative_prompt="", seed=0, **options).layers[0]
        assert np.abs(np.asarray(own, dtype=int) - np.asarray(expected, dtype=int)).max() <= 1


REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "no picture": ({"edit_image": (), "prompt": "a"}, "decomposes one picture, but none is given", "--edit-image"),
    "two": ({"edit_image": ("a.png", "a.png")}, "but 2 are given", "once"),
    "another ratio": ({"height": 64, "width": 160}, "which 160x64 would distort", "leave out the height"),
    "a start": ({"input_image": "a.png", "denoising_strength": 0.5}, "--input-image has no effect", "--edit-image"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_decomposed_is_refused_before_anything_is_loaded(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    options, problem, hint = REFUSED[name]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dsctl_core.commands.infer.load", None)
    with pytest.raises(UsageError) as caught:
        infer(asked(pair, tmp_path, **options))
    assert problem in caught.value.problem
    assert hint in (caught.value.hint or "")


def test_a_file_of_somebody_else_is_not_replaced_by_a_layer(pair: Pair, tmp_path: Path) -> None:
    layer(8, 8).save(tmp_path / "out-layer-2.png")
    before = (tmp_path / "out-layer-2.png").read_bytes()
    with pytest.raises(DsctlError, match=r"out-layer-2.png is there already"):
        infer(asked(pair, tmp_path, prompt="a"))
    assert (tmp_path / "out-layer-2.png").read_bytes() == before
    assert not (tmp_path / "out.png").exists()


@pytest.mark.parametrize("named", [True, False], ids=["with the model", "without"])
def test_a_dataset_of_layers_is_validated(pair: Pair, tmp_path: Path, named: bool) -> None:
    for name, sizes in (("a", [(48, 32)] * 10), ("b", [(48, 32), (96, 64)]), ("c", [])):
        (tmp_path / name).mkdir()
        for number, size in enumerate(sizes, 1):
            layer(*size, number + len(sizes)).save(tmp_path / name / f"{number}.png")
    lines = [json.dumps({"layers": f"{name}/", "prompt": name}) for name in "abc"]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    model = {"model": str(pair.folder)} if named else {}
    found = validate(DatasetValidateOptions(path=tmp_path, data_file_keys="layers", **model))
    problems = [(each.row, each.kind, each.message) for each in found.found.problems]
    assert [(row, kind) for row, kind, _ in problems] == [(2, "size"), (3, "list")]
    assert "a picture of 96x64 pixels, but layers has 48x32" in problems[0][2]
    assert "c is empty" in problems[1][2]
    assert [len(sample.sizes) for sample in found.found.samples] == [10, 2, 0]
    assert [path.name for path in found.found.files][:10] == [f"{number}.png" for number in range(1, 11)]
