"""A cache that is damaged, foreign or made of something else is refused before step 1, by the name of the file."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from dsctl_core.cache.manifest import read_manifest
from dsctl_core.cache.reader import CachedDataset
from dsctl_core.cache.verify import find_problems
from dsctl_core.commands.train import train
from dsctl_core.errors import DsctlError
from dsctl_core.options import TrainOptions
from dsctl_core.training.plan.cache_check import CacheMismatch
from tests.tiny_models import write_tiny_model


def start(cache: Path, out: Path, **settings: Any) -> Any:
    base = {"from_cache": cache, "lora_rank": 2, "max_steps": 2, "device": "cpu", "output_path": out}
    return train(TrainOptions(**{**base, **settings}))


def a_shard(cache: Path) -> Path:
    return min((cache / "shards").iterdir())


def flip_a_byte(cache: Path) -> str:
    shard = a_shard(cache)
    data = bytearray(shard.read_bytes())
    data[-5] ^= 1
    shard.write_bytes(data)
    return shard.name


def flip_a_byte_of_the_header(cache: Path) -> str:
    shard = a_shard(cache)
    data = bytearray(shard.read_bytes())
    data[40] ^= 1
    shard.write_bytes(data)
    return shard.name


def cut_off(cache: Path) -> str:
    shard = a_shard(cache)
    shard.write_bytes(shard.read_bytes()[:-50])
    return shard.name


def delete(cache: Path) -> str:
    shard = a_shard(cache)
    shard.unlink()
    return shard.name


def make_it_a_pickle(cache: Path) -> str:
    shard = a_shard(cache)
    torch.save({"x": torch.zeros(3)}, shard)
    return shard.name


def replace_by_other_tensors(cache: Path) -> str:
    shard = a_shard(cache)
    save_file({name: tensor + 1 for name, tensor in load_file(shard).items()}, shard)
    return shard.name


def rewrite(path: Path, **changes: Any) -> str:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return path.name


def another_format(cache: Path) -> str:
    return rewrite(cache / "manifest.json", format=2)


def another_version(cache: Path) -> str:
    return rewrite(cache / "manifest.json", dsctl_version="9.9.9")


def cut_manifest(cache: Path) -> str:
    (cache / "manifest.json").write_text((cache / "manifest.json").read_text()[:100])
    return "manifest.json"


def no_manifest(cache: Path) -> str:
    (cache / "manifest.json").unlink()
    return "not complete"


def another_index(cache: Path) -> str:
    return rewrite(cache / "index.json", entries=[])


def no_index(cache: Path) -> str:
    (cache / "index.json").unlink()
    return "index.json"


DAMAGES = [flip_a_byte, flip_a_byte_of_the_header, cut_off, delete, make_it_a_pickle, replace_by_other_tensors]
DAMAGES += [another_format, another_version, cut_manifest, no_manifest, another_index, no_index]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damage_is_named_before_the_first_step(cache: Path, tmp_path: Path, damage: Any) -> None:
    named = damage(cache)
    with pytest.raises(DsctlError) as caught:
        start(cache, tmp_path / "out")
    assert named in caught.value.problem
    assert caught.value.hint
    assert caught.value.exit_code == 1
    assert not (tmp_path / "out").exists()
    assert any(named in problem.message for problem in find_problems(cache))


def test_a_pickle_is_not_opened(cache: Path, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "ran",)

    torch.save(Bomb(), a_shard(cache))
    with pytest.raises(DsctlError, match="is a pickle, which can run code"):
        start(cache, tmp_path / "out")
    assert not (tmp_path / "ran").exists()


def test_a_whole_cache_has_no_problem(cache: Path) -> None:
    assert list(find_problems(cache)) == []


def test_training_needs_no_pictures_and_no_encoders(
    cache: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dsctl_core.checkpoint import load, readers

    only_dit = tmp_path / "only-dit"
    shutil.copytree(model, only_dit, ignore=shutil.ignore_patterns("vae", "text_encoder", "tokenizer"))
    loaded, real = [], load.load_component
    monkeypatch.setattr(load, "load_component", lambda c, *rest: loaded.append(c.name) or real(c, *rest))
    monkeypatch.setattr(readers, "load_reader", lambda *_: pytest.fail("the tokenizer was loaded"))
    monkeypatch.setattr(Image, "open", lambda *_: pytest.fail("a picture was read"))
    assert start(cache, tmp_path / "a").steps == 2
    assert start(cache, tmp_path / "b", model=str(only_dit)).steps == 2
    assert loaded == ["dit", "dit"]


def test_what_training_is_told_at_run_time_never_comes_from_the_cache(cache: Path, tmp_path: Path) -> None:
    names = {name for entry in CachedDataset(cache).entries for name in entry.values}
    assert not any("gradient_checkpointing" in name for name in names)
    plain = start(cache, tmp_path / "a")
    assert start(cache, tmp_path / "b", use_gradient_checkpointing=True).final_loss == plain.final_loss


@pytest.mark.parametrize(
    ("component", "folder"), [("text_encoder", "text_encoder"), ("vae", "vae"), ("text_encoder", "tokenizer")]
)
def test_another_encoder_is_refused_with_both_identities_and_the_command(
    cache: Path, model: Path, tmp_path: Path, component: str, folder: str
) -> None:
    other = tmp_path / "other"
    shutil.copytree(model, other)
    if folder == "tokenizer":
        rewrite(other / "tokenizer" / "tokenizer_config.json", extra="x")
    else:
        shutil.rmtree(other / folder)
        shutil.copytree(write_tiny_model("qwen-image", tmp_path / "seed-1", seed=1) / folder, other / folder)
    old = read_manifest(cache).recipe.components[component]
    with pytest.raises(CacheMismatch, match=f"was made with the {component.replace('_', ' ')} {old[:19]}") as caught:
        start(cache, tmp_path / "out", model=str(other))
    assert caught.value.hint is not None
    assert f"dsctl cache --model {other}" in caught.value.hint
    assert f"--output-path {cache}" in caught.value.hint


def test_a_model_that_changed_where_it_lies_is_refused(cache: Path, model: Path, tmp_path: Path) -> None:
    moved = tmp_path / "model"
    shutil.copytree(model, moved)
    vae = moved / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(vae)
    name = next(iter(tensors))
    tensors[name] = tensors[name] + 1e-3
    save_file(tensors, vae)
    with pytest.raises(CacheMismatch, match="made with the vae"):
        start(cache, tmp_path / "out", model=str(moved))


@pytest.mark.parametrize(
    ("settings", "problem", "command"),
    [
        ({"height": 32, "width": 32}, "the height pictures of their own size, but this run has 32", "--height 32"),
        ({"max_pixels": 4096}, "the max pixels 1048576, but this run has 4096", "--max-pixels 4096"),
        ({"data_file_keys": "image,mask"}, "the data file keys image, but this run has image,mask", "image,mask"),
        (
            {"trainable_models": "text_encoder", "lora_rank": None},
            "the trained components dit, but this run has text_encoder",
            "--trainable-models text_encoder",
        ),
    ],
)
def test_other_options_are_refused_with_both_values_and_the_command(
    cache: Path, tmp_path: Path, settings: dict[str, Any], problem: str, command: str
) -> None:
    with pytest.raises(CacheMismatch, match=problem) as caught:
        start(cache, tmp_path / "out", **settings)
    assert command in (caught.value.hint or "")


def test_another_family_and_another_version_of_a_unit_are_refused(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dsctl_core.families.qwen_image.units import PromptEmbedder
    from dsctl_core.families.resolve import resolve_model
    from dsctl_core.training.plan.cache_check import CacheCheck

    with monkeypatch.context() as patches:
        patches.setattr(PromptEmbedder, "version", 2)
        with pytest.raises(CacheMismatch, match="PromptEmbedder version 1, but this run has PromptEmbedder version 2"):
            start(cache, tmp_path / "out")
    manifest = read_manifest(cache)
    object.__setattr__(manifest.recipe, "family", "other")
    dataset = CachedDataset(cache)
    dataset.manifest = manifest
    options = TrainOptions(from_cache=cache, lora_rank=2, output_path=tmp_path / "o")
    check = CacheCheck(dataset, options.weights, options.data)
    with pytest.raises(CacheMismatch, match="made with the family other, but this run has qwen-image"):
        check.refuse_misfit(resolve_model(**check.model_names()), None)


def test_a_value_that_is_not_finite_stops_and_names_the_row_or_leaves_it_out(fill, model, data, tmp_path, monkeypatch):
    from dsctl_core.families.qwen_image.pipeline import QwenImagePipeline

    space = QwenImagePipeline.latent_space

    def spoiled(vae: Any, pixels: Any, *rest: Any) -> Any:
        latents = space.encode(vae, pixels, *rest)
        return latents * float("nan") if pixels.shape[-1] == 32 and pixels.std() < 0.12 else latents

    monkeypatch.setattr(QwenImagePipeline, "latent_space", replace(space, encode=spoiled))
    with pytest.raises(DsctlError, match=r"metadata.csv row 1 \(line 2\): its input_latents is not finite") as caught:
        fill()
    assert "--on-bad-sample skip" in (caught.value.hint or "")
    result = fill(on_bad_sample="skip")
    assert result.manifest.counts["skipped"] == 1
    assert json.loads((tmp_path / "filled" / "skipped.jsonl").read_text())["row"] == 0
    assert [entry.row for entry in CachedDataset(tmp_path / "filled").entries] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_picture_that_cannot_be_read_stops_and_names_the_row_or_is_left_out(fill, data, tmp_path, damage):
    if damage == "missing":
        (data / "4.png").unlink()
    else:
        whole = (data / "4.png").read_bytes()
        (data / "4.png").write_bytes(whole[: len(whole) // 2] + bytes(40) + whole[len(whole) // 2 + 40 :])
    with pytest.raises(DsctlError, match=r"metadata.csv row 5 \(line 6\), image '4.png'"):
        fill()
    assert fill(on_bad_sample="skip").manifest.counts == {"entries": 5, "parts": 9, "shards": 2, "skipped": 1}
