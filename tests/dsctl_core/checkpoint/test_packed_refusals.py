"""What needs whole weights is refused for those that files hold in few bits, in one line, and the rest is not."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from dsctl_core.commands.cache import make_cache
from dsctl_core.commands.infer import infer
from dsctl_core.commands.lora import extract_lora
from dsctl_core.commands.merge_lora import merge
from dsctl_core.commands.train import dry_run, train
from dsctl_core.errors import DsctlError
from dsctl_core.options import CacheOptions, InferOptions
from dsctl_core.options.lora_tools import LoraExtractOptions, MergeLoraOptions
from tests.cases import try_each
from tests.dsctl_core.training.conftest import picture
from tests.dsctl_core.training.test_run import options
from tests.packed_models import pack_component, use_stand_in
from tests.tiny_models import write_tiny_model


@pytest.fixture(autouse=True)
def _bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    use_stand_in(monkeypatch)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model, data, a LoRA and a trained part of the whole model; and models with components packed."""
    folder = tmp_path_factory.mktemp("files")
    found = {"whole": write_tiny_model("qwen-image", folder / "whole"), "data": folder / "data"}
    found["data"].mkdir()
    picture(seed=1).save(found["data"] / "0.png")
    (found["data"] / "0.txt").write_text("a fox")
    for name, more in {
        "lora": {"lora_rank": 2},
        "part": {"lora_rank": None, "trainable_models": "dit.proj_out"},
    }.items():
        found[name] = train(options(found["whole"], found["data"], folder / name, max_steps=1, **more)).checkpoint
    for form in ("nf4", "LLM.int8"):
        for component in ("dit", "text_encoder"):
            found[f"{component} {form}"] = Path(shutil.copytree(found["whole"], folder / f"{component}-{form}"))
            pack_component(found[f"{component} {form}"], component, form)
    return found


def training(files: dict[str, Path], model: Path, out: Path, **more: Any) -> None:
    train(options(model, files["data"], out, **more))


def caching(files: dict[str, Path], model: Path, out: Path, **more: Any) -> None:
    make_cache(CacheOptions(model=str(model), dataset_base_path=files["data"], output_path=out, device="cpu", **more))


def drawing(files: dict[str, Path], model: Path, out: Path, **more: Any) -> None:
    infer(InferOptions(model=str(model), prompt="a fox", output=out / "a.png", device="cpu", **more))


def merging(files: dict[str, Path], model: Path, out: Path, **more: Any) -> None:
    merge(MergeLoraOptions(model=str(model), lora=[str(files["lora"])], output=out, **more))


def extracting(files: dict[str, Path], model: Path, out: Path, **more: Any) -> None:
    extract_lora(LoraExtractOptions(base=model, tuned=files["whole"], output=out / "a.safetensors", rank=2, **more))


PARTS = {"lora_rank": None, "trainable_models": "text_encoder"}
HELD = "the {} is held in {} by its files, "
CASES: list[tuple[str, Any, dict[str, Any], str]] = [
    ("dit", training, {"lora_rank": None, "trainable_models": "dit"}, HELD + "so it cannot be trained whole"),
    ("dit", training, {"lora_rank": None, "trainable_models": "dit.proj_out"}, HELD + "so it cannot be trained whole"),
    ("text_encoder", training, PARTS, HELD + "so it cannot be trained whole"),
    ("dit", training, {"network": "dora"}, HELD + "so it cannot get a DoRA"),
    ("dit", training, {"quantize": "dit=int8"}, HELD + "so it cannot be packed anew"),
    ("text_encoder", training, {"quantize": "text_encoder=int8"}, HELD + "so it cannot be packed anew"),
    ("text_encoder", training, {"fp8_models": "text_encoder"}, HELD + "so it cannot be packed anew"),
    ("dit", training, {"lora": ["{lora}"]}, HELD + "so it cannot have a LoRA merged into it"),
    ("dit", training, {"preset_lora_path": "{lora}"}, HELD + "so it cannot have a LoRA merged into it"),
    ("dit", training, {"float8": True, "compile": True}, HELD + "so it cannot multiply in float8"),
    ("text_encoder", caching, {"quantize": "text_encoder=nf4"}, HELD + "so it cannot be packed anew"),
    ("text_encoder", caching, {"fp8_models": "text_encoder"}, HELD + "so it cannot be packed anew"),
    ("text_encoder", drawing, {"quantize": "text_encoder=int8"}, HELD + "and --quantize needs it whole"),
    ("dit", drawing, {"trained_part": ["{part}"]}, HELD + "and --trained-part needs it whole"),
    ("dit", merging, {}, HELD + "so nothing can be merged into it"),
    ("dit", extracting, {"component": "dit"}, "quantized with bitsandbytes|is U8|is I8"),
]


def test_what_needs_whole_weights_is_refused_in_one_line(files: dict[str, Path], tmp_path: Path) -> None:
    def check(component: str, form: str, command: Any, more: dict[str, Any], said: str) -> None:
        given = {
            name: [str(files["lora"])] if value == ["{lora}"] else [files["part"]] if value == ["{part}"] else value
            for name, value in more.items()
        }
        given |= {name: files["lora"] for name, value in more.items() if value == "{lora}"}
        out = tmp_path / "out"
        with pytest.raises(DsctlError, match=said.format(component, form)) as caught:
            command(files, files[f"{component} {form}"], out, **given)
        assert "\n" not in caught.value.problem and caught.value.hint
        assert not out.exists(), "and nothing is written"

    cases = [(case[0], form, *case[1:]) for case in CASES for form in ("nf4", "LLM.int8")]
    try_each(cases, check, count=2 * len(CASES))


def test_what_leaves_the_packed_component_alone_goes_on(files: dict[str, Path], tmp_path: Path) -> None:
    """A LoRA is merged into the denoiser beside a packed text encoder, and a part of the denoiser replaced."""
    model = files["text_encoder nf4"]
    asked = options(model, files["data"], tmp_path / "never", lora=[str(files["lora"])], lora_rank=2)
    assert dry_run(asked).memory.weights > 0
    drawing(files, model, tmp_path / "drawn", trained_part=[files["part"]], height=32, width=32, num_inference_steps=1)
    merging(files, model, tmp_path / "merged")
    drawing(files, tmp_path / "merged", tmp_path / "again", height=32, width=32, num_inference_steps=1)
    assert (tmp_path / "again" / "a.png").is_file()


def test_a_packed_text_encoder_gets_a_lora(files: dict[str, Path], tmp_path: Path) -> None:
    asked = options(files["text_encoder LLM.int8"], files["data"], tmp_path / "out", lora_base_model="text_encoder")
    found = train(asked).checkpoint
    assert {name.partition(".")[0] for name in load_file(found)} == {"text_encoder"}


def test_a_missing_library_is_named(files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr("dsctl_core.options.quantize.importlib.util.find_spec", lambda _: None)
    for command in (training, caching, drawing):
        with pytest.raises(DsctlError, match="nf4 needs bitsandbytes, which is not installed") as caught:
            command(files, files["text_encoder nf4"], tmp_path / "out")
        assert caught.value.hint == 'pip install "dsctl[quantize]"'
