"""Captions are what the model says, each on its own, once, and where nothing was."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from PIL import Image

from dsctl_core.checkpoint.processors import for_pictures
from dsctl_core.commands.caption import CaptionResult, caption
from dsctl_core.commands.caption_model import PICTURE_PROMPT, Answer, Describer, drawing, one_line
from dsctl_core.data import ImageCropAndResize, UnifiedDataset
from dsctl_core.data.video import LoadVideo
from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.families.resolve import resolve_model
from dsctl_core.media.clip import Clip
from dsctl_core.media.clip_file import write_clip
from dsctl_core.options import DatasetCaptionOptions
from tests.tiny_captioners import write_tiny_captioner
from tests.tiny_models import write_tiny_model

KINDS = ("qwen2.5-vl", "llava")
TOKENS = 12


@pytest.fixture(scope="session")
def captioners(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("captioners")
    return {kind: write_tiny_captioner(kind, root / kind) for kind in KINDS}


def noise(size: tuple[int, int], seed: int) -> Image.Image:
    """The same noise whatever ran before: of some pictures a random model says nothing."""
    return Image.frombytes("RGB", size, Random(seed).randbytes(3 * size[0] * size[1]))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of three pictures, one with a caption, and a clip."""
    path = tmp_path / "set"
    (path / "sub").mkdir(parents=True)
    for number, name in enumerate(("a.png", "b.png", "sub/b.png")):
        noise((40 + 20 * number, 44), number).save(path / name)
    (path / "a.txt").write_text("my own words\n", encoding="utf-8")
    clip = Clip([noise((48, 32), 10 + number) for number in range(6)], 10.0)
    write_clip(path / "c.mp4", clip, {})
    return path


@pytest.fixture
def pictures(folder: Path) -> Path:
    """The folder without its clip."""
    (folder / "c.mp4").unlink()
    return folder


def run(folder: Path, captioner: Path | None, **options: Any) -> CaptionResult:
    named = {} if captioner is None else {"captioner": str(captioner)}
    return caption(DatasetCaptionOptions(path=folder, device="cpu", **{"max_tokens": TOKENS, **named, **options}))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def said(model: Any, processor: Any, pictures: list[Image.Image], question: str) -> str:
    """Return what transformers alone makes of a question about pictures."""
    content = [*({"type": "image"} for _ in pictures), {"type": "text", "text": question}]
    chat = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    read = processor(text=[chat], images=[pictures], return_tensors="pt")
    made = model.generate(**read, do_sample=False, max_new_tokens=TOKENS)
    return one_line(processor.decode(made[0, read["input_ids"].shape[1] :], skip_special_tokens=True))


@pytest.mark.parametrize("kind", KINDS)
def test_a_caption_is_what_transformers_generates(kind: str, captioners: dict[str, Path], folder: Path):
    from transformers import PROCESSOR_MAPPING, AutoConfig, AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(captioners[kind])
    kept = for_pictures(PROCESSOR_MAPPING[type(AutoConfig.from_pretrained(captioners[kind]))])
    processor = kept.from_pretrained(captioners[kind])
    made = run(folder, captioners[kind], prompt="what is it?", num_frames=3)
    assert (made.written, made.kept, made.failed, made.table) == (3, 1, 0, None)
    with Image.open(folder / "b.png") as picture:
        expected = said(model, processor, [picture.convert("RGB")], "what is it?")
    assert len(expected) > 5
    text = (folder / "b.txt").read_text(encoding="utf-8")
    assert expected.startswith(text.strip()) and text.strip()
    frames = LoadVideo(3, 1, 0, extraction="uniform")(folder / "c.mp4")
    assert said(model, processor, frames, "what is it?").startswith((folder / "c.txt").read_text().strip())
    assert (folder / "a.txt").read_text() == "my own words\n"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_captions_of_a_batch_are_those_of_each_file_alone(
    kind: str, temperature: float, captioners: dict[str, Path], folder: Path, tmp_path: Path
):
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    options: dict[str, Any] = {"temperature": temperature, "num_frames": 2}
    run(folder, captioners[kind], batch_size=1, **options)
    run(other, captioners[kind], batch_size=3, **options)
    assert contents(folder) == contents(other)
    assert len({(folder / name).read_text() for name in ("b.txt", "sub/b.txt", "c.txt")}) > 1


def test_words_are_drawn_by_their_probabilities_and_by_the_seed():
    probabilities = torch.tensor([0.5, 0.3, 0.2, 0.0])
    scores = probabilities.log().expand(4000, 4)
    drawn = drawing(range(4000))(torch.zeros(4000, 1), scores).argmax(-1)
    share = torch.bincount(drawn, minlength=4) / 4000
    assert (share - probabilities).abs().max() < 0.03
    assert share[3] == 0
    assert torch.equal(drawing(range(4000))(torch.zeros(4000, 1), scores).argmax(-1), drawn)


class Stopped(Exception):
    """What ends a run in the middle."""


@pytest.fixture
def stopping(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let a run stop before its second batch."""
    describe = Describer.describe

    @contextmanager
    def stop() -> Iterator[None]:
        calls: list[int] = []

        def once(self: Describer, shown: Any) -> list[Answer]:
            calls.append(len(shown))
            if len(calls) > 1:
                raise Stopped
            return describe(self, shown)

        with monkeypatch.context() as patch, pytest.raises(Stopped):
            patch.setattr(Describer, "describe", once)
            yield

    return stop


def test_a_run_that_was_stopped_goes_on_and_ends_as_one_that_was_not(
    captioners: dict[str, Path], folder: Path, tmp_path: Path, stopping: Any
):
    whole = Path(shutil.copytree(folder, tmp_path / "whole"))
    assert run(whole, captioners["llava"]).written == 3
    with stopping():
        run(folder, captioners["llava"])
    assert len(list(folder.rglob("*.txt"))) == 2
    resumed = run(folder, captioners["llava"])
    assert (resumed.written, resumed.kept) == (2, 2)
    assert contents(folder) == contents(whole)
    again = run(folder, captioners["llava"])
    assert (again.written, again.kept) == (0, 4)


def test_a_table_that_was_stopped_goes_on_and_nothing_else_is_touched(
    captioners: dict[str, Path], pictures: Path, tmp_path: Path, stopping: Any
):
    whole = Path(shutil.copytree(pictures, tmp_path / "whole"))
    before = contents(pictures)
    made = run(whole, captioners["llava"], all=True, trigger_word="zq")
    assert (made.written, made.kept, made.table) == (3, 0, whole / "metadata_captioned.csv")
    with stopping():
        run(pictures, captioners["llava"], all=True, trigger_word="zq")
    partial = pictures / "metadata_captioned.csv.partial"
    partial.write_text(partial.read_text(encoding="utf-8") + '{"row": 1, "fi', encoding="utf-8")
    with pytest.raises(DsctlError, match="made with another --trigger-word: 'zq'"):
        run(pictures, captioners["llava"], all=True, trigger_word="other")
    resumed = run(pictures, captioners["llava"], all=True, trigger_word="zq", batch_size=2)
    assert (resumed.written, resumed.earlier) == (2, 1)
    assert contents(pictures) == {**before, "metadata_captioned.csv": contents(whole)["metadata_captioned.csv"]}
    rows = UnifiedDataset(pictures, pictures / "metadata_captioned.csv").metadata.rows
    assert [row["image"] for row in rows] == ["a.png", "b.png", "sub/b.png"]
    assert all(row["prompt"].startswith("zq, ") for row in rows)
    with pytest.raises(DsctlError, match="already exists"):
        run(pictures, captioners["llava"], all=True)


def test_rows_of_a_table_that_have_captions_keep_them_and_lists_stay_lists(captioners: dict[str, Path], pictures: Path):
    rows = [
        {"image": "a.png", "prompt": ["one", "two"], "source": 3},
        {"image": "b.png", "prompt": " ", "source": None},
        {"image": "sub/b.png", "source": 4},
    ]
    (pictures / "metadata.json").write_text(json.dumps(rows), encoding="utf-8")
    before = contents(pictures)
    with pytest.raises(UsageError, match="for which csv has no form"):
        run(pictures, captioners["llava"], output=pictures / "new.csv")
    made = run(pictures, captioners["llava"])
    assert (made.written, made.kept, made.table) == (2, 1, pictures / "metadata_captioned.jsonl")
    found = [json.loads(line) for line in made.table.read_text(encoding="utf-8").splitlines()]
    assert found[0] == rows[0]
    assert [{**row, "prompt": None} for row in found[1:]] == [{**row, "prompt": None} for row in rows[1:]]
    assert all(len(row["prompt"]) > 3 for row in found[1:])
    assert {name: data for name, data in contents(pictures).items() if name in before} == before
    (pictures / "metadata.json").write_text(json.dumps([{"image": ["a.png", "b.png"]}]), encoding="utf-8")
    with pytest.raises(DsctlError, match="the value is a list of 2, but a row has one image"):
        run(pictures, captioners["llava"], output=pictures / "lists.jsonl")


def test_a_caption_that_somebody_wrote_meanwhile_stays(
    captioners: dict[str, Path], pictures: Path, monkeypatch: pytest.MonkeyPatch
):
    describe = Describer.describe

    def slowly(self: Describer, shown: Any) -> list[Answer]:
        (pictures / "b.txt").write_text("mine", encoding="utf-8")
        return describe(self, shown)

    monkeypatch.setattr(Describer, "describe", slowly)
    made = run(pictures, captioners["llava"])
    assert (made.written, made.kept) == (1, 2)
    assert (pictures / "b.txt").read_text(encoding="utf-8") == "mine"


def test_what_cannot_be_described_is_named_and_does_not_stop_the_others(
    captioners: dict[str, Path], pictures: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    (pictures / "b.png").write_bytes((pictures / "b.png").read_bytes()[:200])
    Image.new("RGB", (8000, 28)).save(pictures / "long.png")  # which the processor of this model refuses
    made = run(pictures, captioners["qwen2.5-vl"], batch_size=4)
    assert (made.written, made.kept, made.failed) == (1, 1, 2)
    assert "b.png" in caplog.text and "long.png: the model does not take it: absolute aspect ratio" in caplog.text
    assert sorted(path.name for path in pictures.rglob("*.txt")) == ["a.txt", "b.txt"]
    monkeypatch.setattr(Describer, "describe", lambda self, shown: [Answer("", False)] * len(shown))
    (pictures / "long.png").unlink()
    assert run(pictures, captioners["qwen2.5-vl"]).failed == 2 - 1
    assert not (pictures / "b.txt").exists()


def test_files_that_differ_in_the_suffix_alone_have_captions_of_their_own(captioners: dict[str, Path], pictures: Path):
    Image.effect_noise((40, 40), 90).convert("RGB").save(pictures / "b.jpg")
    (pictures / "sub/b.json").write_text('{"camera": "old"}', encoding="utf-8")
    assert run(pictures, captioners["llava"]).written == 3
    names = sorted(path.relative_to(pictures).as_posix() for path in pictures.rglob("*.txt"))
    assert names == ["a.txt", "b.jpg.txt", "b.png.txt", "sub/b.txt"]
    assert run(pictures, captioners["llava"]).kept == 4
    assert [row["prompt"] for row in UnifiedDataset(pictures).metadata.rows][0] == "my own words"


@pytest.mark.parametrize("family", ["qwen-image", "qwen-image-edit"])
def test_the_text_encoder_of_a_model_describes_without_anything_else(family: str, pictures: Path, tmp_path: Path):
    model = write_tiny_model(family, tmp_path / "model")
    made = run(pictures, None, model=str(model), max_pixels=28 * 56)
    assert (made.written, made.kept) == (2, 1)
    resolved = resolve_model(str(model))
    pipe: Any = resolved.load_pipeline(torch_dtype=torch.float32, device="cpu", only=("text_encoder",))
    from dsctl_core.families.qwen_vl_chat import processor

    assert processor(pipe).image_processor.size["longest_edge"] == (56 * 84 if "edit" in family else 28 * 28 * 16384)
    with Image.open(pictures / "b.png") as picture:
        shown = ImageCropAndResize(None, None, 28 * 56, 1, 1)(picture.convert("RGB"))
    expected = said(pipe.text_encoder, processor(pipe), [shown], PICTURE_PROMPT)
    text = (pictures / "b.txt").read_text(encoding="utf-8").strip()
    assert text and expected.startswith(text)


def test_no_code_of_a_model_is_run_and_no_pickle_is_read(captioners: dict[str, Path], pictures: Path, tmp_path: Path):
    trap = tmp_path / "trap"
    code = f"open({str(trap)!r}, 'w')\n"
    own = Path(shutil.copytree(captioners["llava"], tmp_path / "own"))
    (own / "code.py").write_text(code, encoding="utf-8")
    config = json.loads((own / "config.json").read_text())
    for changes in ({"model_type": "odd"}, {}):
        mapped = {"AutoConfig": "code.C", "AutoModelForImageTextToText": "code.M", "AutoProcessor": "code.P"}
        (own / "config.json").write_text(json.dumps({**config, **changes, "auto_map": mapped}), encoding="utf-8")
        if changes:
            with pytest.raises(DsctlError, match="'odd', which is no vision-language model of transformers") as caught:
                run(pictures, own)
            assert "never run" in str(caught.value.hint)
        else:
            assert run(pictures, own).written == 2  # by the classes of transformers
    (pictures / "b.txt").unlink()
    (own / "model.safetensors").unlink()
    (own / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(trap)))
    with pytest.raises(DsctlError, match="own"):
        run(pictures, own)
    assert not trap.exists()


class Trap:
    """An object whose pickle writes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.write_text, (self.path, "sprung")


def test_a_caption_that_is_too_long_ends_with_its_last_sentence_and_has_no_control_characters():
    class Tokenizer:
        eos_token_id, bos_token, padding_side, pad_token, eos_token, pad_token_id = 9, None, "", "p", "e", 0

        def decode(self, tokens: list[int], **_: Any) -> str:
            return "".join({1: "A dog.\n", 2: " It\x1b[31m runs", 3: "!"}[token] for token in tokens)

    from types import SimpleNamespace

    from transformers import GenerationConfig

    model = SimpleNamespace(generation_config=GenerationConfig())
    describer = Describer(model, SimpleNamespace(tokenizer=Tokenizer()), DatasetCaptionOptions(path="x", model="y"))
    assert describer._answer([1, 2]) == Answer("A dog.", True)
    assert describer._answer([1, 2, 9, 3]) == Answer("A dog. It[31m runs", False)
    assert describer._answer([2, 2]) == Answer("It[31m runs It[31m runs", True)


def test_bad_requests_are_refused_before_a_model_is_loaded(pictures: Path, captioners: dict[str, Path], tmp_path: Path):
    refused: list[tuple[dict[str, Any], str, str]] = [
        ({}, "nothing that describes pictures is named", "--captioner"),
        ({"model": "z-image"}, "reads no pictures", "--captioner"),
        ({"model": "tiny"}, "tiny is too small to describe pictures", "--captioner"),
        ({"model": "tiny", "captioner": "a/b"}, "both given", "one of them"),
        ({"captioner": "nowhere"}, "--captioner nowhere does not exist", "OWNER/NAME"),
        ({"captioner": "own/vlm"}, "own/vlm is not in", "dsctl download own/vlm"),
        ({"captioner": str(pictures)}, "has no config.json", "folder of a model"),
        ({"captioner": "a/b", "num_frames": 3}, "--num-frames has no effect", "leave it out"),
        ({"captioner": "a/b", "file_column": "image"}, "--file-column has no effect", "leave it out"),
        ({"captioner": "a/b", "seed": 3}, "--seed has no effect at --temperature 0", "--temperature"),
        ({"captioner": "a/b", "output": "x.txt"}, "which is no table", ".csv"),
        ({"captioner": "a/b", "trigger_word": " "}, "says nothing", "leave it out"),
    ]
    before = contents(pictures)
    for options, problem, hint in refused:
        with pytest.raises(DsctlError) as caught:
            caption(DatasetCaptionOptions(path=pictures, **options))
        assert problem in caught.value.problem and hint in str(caught.value.hint), options
    pair = tmp_path / "pair"
    for name in ("target", "control"):
        (pair / name).mkdir(parents=True)
        shutil.copy(pictures / "b.png", pair / name)
    with pytest.raises(DsctlError, match="pairs of pictures") as caught:
        run(pair, captioners["llava"])
    assert str(pair / "target") in str(caught.value.hint)
    assert contents(pictures) == before
