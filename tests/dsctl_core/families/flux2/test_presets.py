"""A preset whose parts are in two repositories: found, trained, run and merged as any other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from dsctl_core.checkpoint.load import find_component_paths
from dsctl_core.commands.infer import infer
from dsctl_core.commands.merge_lora import merge
from dsctl_core.commands.train import train
from dsctl_core.errors import DsctlError
from dsctl_core.families import find_preset
from dsctl_core.families.resolve import resolve_model
from dsctl_core.options import InferOptions, TrainOptions
from dsctl_core.options.lora_tools import MergeLoraOptions
from tests.dsctl_core.families.flux2.conftest import Pair

BASE, DISTILLED = "black-forest-labs/FLUX.2-klein-base-4B", "black-forest-labs/FLUX.2-klein-4B"
SMALL = {"height": 32, "width": 32, "num_inference_steps": 1, "device": "cpu", "prompt": "a"}


@pytest.fixture
def models(klein: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny klein where a preset would be downloaded to: each part only in the repository that it is from."""
    base = tmp_path / "models"
    for repository, folders in ((BASE, ["transformer"]), (DISTILLED, ["text_encoder", "vae", "tokenizer"])):
        for folder in folders:
            shutil.copytree(klein.folder / folder, base / repository / folder)
    monkeypatch.setenv("DSCTL_MODEL_BASE_PATH", str(base))
    return base


def test_every_part_is_found_in_its_repository(models: Path) -> None:
    resolved = resolve_model("flux2-klein-base-4b")
    places = find_component_paths(resolved.family, resolved.model_configs, resolved.reader_configs)
    assert places.components == {
        "dit": models / BASE / "transformer",
        "vae": models / DISTILLED / "vae",
        "text_encoder": models / DISTILLED / "text_encoder",
    }
    assert places.readers["tokenizer"] == models / DISTILLED / "tokenizer"


def test_a_part_that_is_not_there_is_named_with_the_command_that_gets_it(models: Path) -> None:
    shutil.rmtree(models / DISTILLED)
    with pytest.raises(DsctlError, match="FLUX.2-klein-4B is not in") as caught:
        infer(InferOptions(model="flux2-klein-base-4b", **SMALL))
    assert "dsctl download" in (caught.value.hint or "")


def test_training_running_and_merging_by_the_presets_name(models: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    Image.effect_noise((32, 32), 60).convert("RGB").save(data / "a.png")
    (data / "metadata.csv").write_text("image,prompt\na.png,a picture\n")
    options = {"model": "flux2-klein-base-4b", "dataset_base_path": data, "lora_rank": 2, "max_steps": 2}
    # Two steps on one row: encoded once, then trained without the text encoder and the VAE.
    result = train(TrainOptions(**options, output_path=tmp_path / "out", device="cpu", mixed_precision="no"))
    about = json.loads((tmp_path / "out" / "run.json").read_text())
    assert (about["family"], about["preset"]) == ("flux2", "flux2-klein-base-4b")
    merge(MergeLoraOptions(model="flux2-klein-base-4b", lora=(str(result.checkpoint),), output=tmp_path / "merged"))
    index = json.loads((tmp_path / "merged" / "model_index.json").read_text())
    assert index["_class_name"] == "Flux2KleinPipeline"
    assert index["text_encoder"] == ["transformers", "Qwen3ForCausalLM"]
    by_name = infer(
        InferOptions(
            model="flux2-klein-base-4b", lora=(str(result.checkpoint),), output=tmp_path / "a.png", cfg_scale=2, **SMALL
        )
    )
    merged = infer(InferOptions(model=str(tmp_path / "merged"), output=tmp_path / "b.png", cfg_scale=2, **SMALL))
    with Image.open(by_name.files[0]) as one, Image.open(merged.files[0]) as other:
        differences = [abs(a - b) for a, b in zip(one.tobytes(), other.tobytes(), strict=True)]
    assert max(differences) <= 1


@pytest.mark.parametrize(
    ("preset", "text_width", "guidance"),
    [
        ("flux2-klein-base-4b", 7680, False),
        ("flux2-klein-4b", 7680, False),
        ("flux2-klein-base-9b", 12288, False),
        ("flux2-klein-9b", 12288, False),
        ("flux2-dev", 15360, True),
    ],
)
def test_a_preset_is_reckoned_with_at_its_own_size(preset: str, text_width: int, guidance: bool) -> None:
    family, found = find_preset(preset)
    sizes = family.sizes("dit", found.variant)
    assert (sizes["joint_attention_dim"], sizes["guidance_embeds"]) == (text_width, guidance)
    assert family.cache_bytes is not None
    assert family.cache_bytes(sizes, 1024, 1024, 1, 40) == (2 * 128 * 64 * 64, 2 * 512 * text_width)
    assert family.sizes("vae", found.variant) == family.published["vae"]
