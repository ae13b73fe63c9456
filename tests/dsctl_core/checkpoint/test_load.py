"""Loading is strict: the right class, every tensor, no other, in the dtype asked for."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from dsctl_core import ModelConfig
from dsctl_core.checkpoint.load import load_components
from dsctl_core.errors import DsctlError
from dsctl_core.families import load_family
from tests.tiny_models import write_tiny_model

FAMILY = load_family("qwen-image")
DIT = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return write_tiny_model(FAMILY.name, tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def folder(published, tmp_path):
    return shutil.copytree(published, tmp_path / "model")


def load(*configs, tokenizer=None, **kwargs):
    settings = {"torch_dtype": torch.float32, "device": "cpu", **kwargs}
    readers = None if tokenizer is None else {"tokenizer": tokenizer}
    return load_components(FAMILY, [ModelConfig(config) for config in configs], readers, **settings)


def test_a_folder_gives_every_component_frozen_with_exactly_its_tensors(folder):
    loaded = load(folder)
    assert set(loaded.models) == {"dit", "vae", "text_encoder"}
    assert loaded.readers.get("tokenizer") is not None
    stored = load_file(folder / DIT)
    parameters = dict(loaded.models["dit"].named_parameters())
    assert parameters.keys() == stored.keys()
    assert all(torch.equal(parameters[name], stored[name]) for name in stored)
    for model in loaded.models.values():
        assert not model.training
        assert not any(parameter.requires_grad for parameter in model.parameters())


def test_dtypes_are_those_asked_for(folder):
    loaded = load(folder, torch_dtype=torch.bfloat16, component_dtypes={"dit": torch.float32})
    dtypes = {name: {p.dtype for p in model.parameters()} for name, model in loaded.models.items()}
    assert dtypes == {"dit": {torch.float32}, "vae": {torch.bfloat16}, "text_encoder": {torch.bfloat16}}


def test_only_what_is_asked_for_is_loaded(folder):
    assert set(load(folder, only=("vae",)).models) == {"vae"}


def test_the_schedule_comes_from_the_folder(folder):
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "max_shift": 1.25, "shift_terminal": None}))
    schedule = load(folder).schedule
    assert (schedule.max_shift, schedule.shift_terminal) == (1.25, None)
    assert schedule.training_mu == FAMILY.schedule.training_mu


def test_files_are_recognised_by_the_config_beside_them(folder):
    loaded = load(folder / DIT, folder / "vae", tokenizer=ModelConfig(folder / "tokenizer" / "tokenizer.json"))
    assert set(loaded.models) == {"dit", "vae"}
    assert loaded.readers.get("tokenizer") is not None


def shard(folder):
    """Split the transformer into two shards with an index; return the shards."""
    tensors = load_file(folder / DIT)
    names = sorted(tensors)
    shards = [folder / "transformer" / f"diffusion_pytorch_model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    parts = [names[: len(names) // 2], names[len(names) // 2 :]]
    for path, part in zip(shards, parts, strict=True):
        save_file({name: tensors[name] for name in part}, path, metadata={"format": "pt"})
    (folder / DIT).unlink()
    weight_map = {name: path.name for path, part in zip(shards, parts, strict=True) for name in part}
    index = folder / "transformer" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return shards


def test_shards_load_as_the_whole_file_does(folder, published):
    shards = shard(folder)
    expected = load_file(published / DIT)
    for config in (folder, shards):
        parameters = dict(load(config).models["dit"].named_parameters())
        assert parameters.keys() == expected.keys() != set()
        assert all(torch.equal(parameters[name], expected[name]) for name in expected)


def test_a_missing_shard_is_named_whether_it_is_gone_or_not_given(folder):
    shards = shard(folder)
    with pytest.raises(DsctlError, match=rf"{shards[1].name} belongs to the same component but was not given"):
        load(shards[0])
    shards[1].unlink()
    with pytest.raises(DsctlError, match=rf"{shards[1].name} is missing"):
        load(folder)


def change_tensors(folder, change):
    tensors = load_file(folder / DIT)
    change(tensors)
    save_file(tensors, folder / DIT, metadata={"format": "pt"})


def pickled(folder):
    torch.save({"weight": torch.ones(1)}, (folder / DIT).with_suffix(".bin"))
    (folder / DIT).unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: change_tensors(f, lambda t: t.pop("proj_out.weight")), r"lacks 1 weight, proj_out\.weight"),
        (lambda f: change_tensors(f, lambda t: t.update(extra=torch.ones(1))), "has 1 weight, which .* extra first"),
        (lambda f: change_tensors(f, lambda t: t.update({"proj_out.bias": torch.ones(3)})), r"proj_out\.bias"),
        (lambda f: (f / DIT).write_bytes((f / DIT).read_bytes()[:-1]), "is damaged"),
        (lambda f: (f / DIT).unlink(), "has no weights"),
        (lambda f: (f / DIT).rename((f / DIT).with_suffix(".bin")), r"its diffusion_pytorch_model\.bin is one by its"),
        (lambda f: pickled(f), r"its diffusion_pytorch_model\.bin is a pickle in a zip archive"),
        (lambda f: (f / "transformer/config.json").unlink(), "has no config.json"),
        (lambda f: (f / "transformer/config.json").write_text("{"), "is not valid JSON"),
        (lambda f: (f / "transformer/config.json").write_text("[]"), "should hold a JSON object"),
        (lambda f: (f / "transformer/config.json").write_text("{}"), "names no class"),
        (
            lambda f: shutil.copy(f / "vae/config.json", f / "transformer/config.json"),
            "not a QwenImageTransformer2DModel",
        ),
        (lambda f: (f / "tokenizer/tokenizer.json").write_text("no"), "tokenizer"),
    ],
)
def test_a_model_that_is_not_whole_is_refused_by_name(folder, damage, message):
    damage(folder)
    with pytest.raises(DsctlError, match=message) as caught:
        load(folder).readers.get("tokenizer")
    assert str(folder) in caught.value.problem
    assert caught.value.hint
    assert "\n" not in caught.value.problem


def test_a_component_given_twice_is_refused(folder):
    with pytest.raises(DsctlError, match="the dit is given twice"):
        load(folder / "transformer", folder / DIT)


def test_a_component_of_another_family_is_refused(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
    with pytest.raises(DsctlError, match="UNet2DConditionModel, which is no part of qwen-image"):
        load(tmp_path / "x")
