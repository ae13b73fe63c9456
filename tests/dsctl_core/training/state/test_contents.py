"""Content, not paths: every option that names a file is compared by what is in the file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file

from dsctl_core.errors import UsageError
from dsctl_core.files.digest import SAMPLE, SAMPLES, digest_samples
from dsctl_core.lora.layers import LoraLayer
from dsctl_core.lora.save import save_lora
from dsctl_core.options import TrainOptions
from dsctl_core.progress import NoProgress
from dsctl_core.training.plan.plan import plan_training
from dsctl_core.training.state.compare import FREE, refuse_changes
from tests.cases import try_each
from tests.dsctl_core.training.runs import metrics
from tests.dsctl_core.training.test_run import options
from tests.templates import write_template

# Options whose value is a path, or can be one, by whether a change of the content is noticed.
NOTICED = {
    *("model", "model_paths", "tokenizer_path", "dataset_base_path", "dataset_metadata_path", "from_cache"),
    *("lora", "preset_lora_path", "lora_checkpoint", "template"),
}
NO_RESULT = {
    *("output_path", "mirror", "resume"),
    "sample_prompts_file",  # what is drawn beside the training
    "accelerate_config",  # how the work is divided
    "dataset_config",  # its tables are compared one by one, with the files that they name: test_several_datasets
    "model_id_with_origin_paths",  # ids on a hub; the files that they name are compared as those of a model
}


def change_weights(file: Path) -> None:
    tensors = load_file(file)
    name = max(tensors, key=lambda each: tensors[each].numel())
    save_file({**tensors, name: tensors[name] + 1}, file)


def change_json(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def append(file: Path, text: str) -> None:
    file.write_text(file.read_text() + text)


def recolour(file: Path) -> None:
    """Draw another picture in a file that keeps its size in bytes."""
    size = file.stat().st_size
    with Image.open(file) as opened:
        Image.new("RGB", opened.size, "red").save(file)
    assert file.stat().st_size <= size
    file.write_bytes(file.read_bytes() + bytes(size - file.stat().st_size))


# what is changed -> the option that names it, the change in the folder of `places`, and how the refusal calls it
CHANGES: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "weights of the dit": (
        "model",
        lambda here: change_weights(here / "model/transformer/diffusion_pytorch_model.safetensors"),
        "the model was",
    ),
    "weights of the vae": (
        "model",
        lambda here: change_weights(here / "model/vae/diffusion_pytorch_model.safetensors"),
        "the model was",
    ),
    "config of the dit": (
        "model",
        lambda here: change_json(here / "model/transformer/config.json", note=1),
        "configs, schedule or tokenizers of the model",
    ),
    "schedule": (
        "model",
        lambda here: change_json(here / "model/scheduler/scheduler_config.json", base_shift=0.7),
        "configs, schedule or tokenizers of the model",
    ),
    "tokenizer": (
        "model",
        lambda here: change_json(here / "model/tokenizer/tokenizer_config.json", note=1),
        "configs, schedule or tokenizers of the model",
    ),
    "another tokenizer": (
        "tokenizer_path",
        lambda here: change_json(here / "tokenizer/tokenizer_config.json", note=1),
        "configs, schedule or tokenizers of the model",
    ),
    "lora": ("lora", lambda here: change_weights(here / "lora.safetensors"), "the content of --lora"),
    "alpha of a peft folder": (
        "lora folder",
        lambda here: change_json(here / "peft/adapter_config.json", lora_alpha=7.0),
        "the content of --lora",
    ),
    "preset lora": (
        "preset_lora_path",
        lambda here: change_weights(here / "lora.safetensors"),
        "the content of --preset-lora-path",
    ),
    "lora to train on": (
        "lora_checkpoint",
        lambda here: change_weights(here / "lora.safetensors"),
        "the content of --lora-checkpoint",
    ),
    "code of a template": (
        "template",
        lambda here: append(here / "template/model.py", "\n# changed\n"),
        "the code of --template",
    ),
    "a caption": (
        "dataset_base_path",
        lambda here: append(here / "pictures/metadata.csv", "0.png,once more\n"),
        "the dataset was",
    ),
    "another table": (
        "dataset_metadata_path",
        lambda here: append(here / "table.csv", "0.png,once more\n"),
        "the dataset was",
    ),
    "a picture": (
        "dataset_base_path",
        lambda here: recolour(here / "pictures/2.png"),
        "the content of the dataset's files",
    ),
    "a cache": (
        "from_cache",
        lambda here: shutil.copytree(here / "other-cache", here / "cache", dirs_exist_ok=True),
        "the dataset was",
    ),
    "weights by path": (
        "model_paths",
        lambda here: change_weights(here / "model/transformer/diffusion_pytorch_model.safetensors"),
        "the model was",
    ),
}


@pytest.fixture
def here(tiny_folder: Path, dataset_folder: Path, tmp_path: Path) -> Path:
    """The folder with everything that options can name."""
    from dsctl_core.commands.cache import make_cache
    from dsctl_core.options import CacheOptions

    shutil.copytree(tiny_folder, tmp_path / "model")
    shutil.copytree(tiny_folder / "tokenizer", tmp_path / "tokenizer")
    shutil.copy(dataset_folder / "metadata.csv", tmp_path / "table.csv")
    weight = load_file(tiny_folder / "transformer/diffusion_pytorch_model.safetensors")
    rows, columns = weight["transformer_blocks.0.attn.to_q.weight"].shape
    layer = LoraLayer(torch.full((2, columns), 0.01), torch.full((rows, 2), 0.01), 1.0)
    layers = {"dit": {"transformer_blocks.0.attn.to_q": layer}}
    save_lora(tmp_path / "lora.safetensors", layers, {})
    save_lora(tmp_path / "peft", layers, {}, form="peft")
    write_template(tmp_path / "template")
    base = {"model": str(tiny_folder), "dataset_base_path": dataset_folder, "device": "cpu"}
    make_cache(CacheOptions(**base, output_path=tmp_path / "cache"))
    make_cache(CacheOptions(**base, output_path=tmp_path / "other-cache", caption_prefix="other"))
    return tmp_path


def identity(here: Path, option: str) -> dict[str, Any]:
    """Return what a run that uses `option` is identified by."""
    parts = [str(here / "model" / name) for name in ("transformer", "vae", "text_encoder")]
    named: dict[str, dict[str, Any]] = {
        "tokenizer_path": {"tokenizer_path": str(here / "tokenizer")},
        "lora": {"lora": [f"{here / 'lora.safetensors'}:0.5"]},
        "lora folder": {"lora": [str(here / "peft")]},
        "preset_lora_path": {"preset_lora_path": here / "lora.safetensors"},
        "lora_checkpoint": {"lora_checkpoint": here / "lora.safetensors"},
        "template": {"template": str(here / "template"), "trust_template": True},
        "dataset_metadata_path": {"dataset_metadata_path": here / "table.csv"},
        "from_cache": {"from_cache": here / "cache", "dataset_base_path": None},
        "model_paths": {
            "model": None,
            "model_paths": json.dumps(parts),
            "tokenizer_path": str(here / "tokenizer"),
        },
    }
    asked = {"model": str(here / "model"), "dataset_base_path": here / "pictures", **named.get(option, {})}
    asked = {name: value for name, value in asked.items() if value is not None}
    rest = {"output_path": here / "out", "lora_rank": 2, "max_steps": 1, "device": "cpu"}
    plan = plan_training(TrainOptions(**asked, **rest), NoProgress())
    plan.accelerator.end_training()
    return plan.identity


def test_every_option_that_names_a_file_is_in_the_table():
    fields = TrainOptions.flat_fields()
    paths = {name for name, field in fields.items() if "Path" in str(field.annotation) or name.endswith("_path")}
    paths |= {name for name, field in fields.items() if "LoraFile" in str(field.annotation)}
    paths |= {name for name, field in fields.items() if "TemplateSource" in str(field.annotation)}
    paths |= {"model", "model_paths", "model_id_with_origin_paths", "resume"}
    assert paths == NOTICED | NO_RESULT
    assert {option.split()[0] for option, _, _ in CHANGES.values()} == NOTICED
    assert not {"lora", "preset_lora_path", "lora_checkpoint", "template"} & FREE


def test_changed_content_is_noticed_and_called_by_its_option(here: Path, tmp_path_factory: pytest.TempPathFactory):
    kept = shutil.copytree(here, tmp_path_factory.mktemp("kept") / "all")
    before = {option: identity(here, option) for option in sorted({each for each, _, _ in CHANGES.values()})}

    def check(what: str) -> None:
        option, change, called = CHANGES[what]
        assert refuse_changes(before[option], identity(here, option), (), here) == {}
        change(here)
        with pytest.raises(UsageError, match=called):
            refuse_changes(before[option], identity(here, option), (), here)
        shutil.rmtree(here)
        shutil.copytree(kept, here)

    try_each([(what,) for what in CHANGES], check, count=len(CHANGES))


def test_the_same_content_elsewhere_is_the_same_run(here: Path, tmp_path_factory: pytest.TempPathFactory):
    moved = shutil.copytree(here, tmp_path_factory.mktemp("moved") / "all")

    def check(option: str) -> None:
        assert refuse_changes(identity(here, option), identity(moved, option), (), here) == {}

    try_each([(option,) for option in sorted({each for each, _, _ in CHANGES.values()})], check, at_least=8)


def test_a_lora_that_was_overwritten_is_not_trained_on(tiny_folder, dataset_folder, here):
    from dsctl_core.commands.train import train

    def asked(**more: Any) -> TrainOptions:
        lora = [f"{here / 'lora.safetensors'}:1.0"]
        return options(tiny_folder, dataset_folder, here / "out", lora=lora, save_steps=1, **more)

    train(asked(max_steps=1))
    change_weights(here / "lora.safetensors")
    with pytest.raises(
        UsageError, match=r"the content of --lora, or its scale, was \w{12}\.\.\.,1\.0, now it is"
    ) as caught:
        train(asked(max_steps=2, resume="latest"))
    assert "--allow-changed lora" in str(caught.value.hint)
    train(asked(max_steps=2, resume="latest", allow_changed="lora"))
    assert [line["step"] for line in metrics(here / "out")] == [1, 2]


@given(st.integers(0, SAMPLE * SAMPLES), st.data())
def test_any_changed_byte_of_a_small_file_is_noticed(size: int, data: st.DataObject):
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "a")
        content = bytearray(size)
        file.write_bytes(content)
        before = digest_samples([file])
        if size:
            content[data.draw(st.integers(0, size - 1))] ^= 1
            file.write_bytes(content)
        else:
            file.write_bytes(b"1")
        assert digest_samples([file]) != before


def test_the_ends_and_the_size_of_a_large_file_are_noticed(tmp_path: Path):
    size, file = 10 * SAMPLE * SAMPLES, tmp_path / "a"
    digests = set()
    for place in (None, 0, SAMPLE - 1, size - SAMPLE, size - 1, size):
        content = bytearray(size)
        if place is not None:
            content[place : place + 1] = b"1"
        file.write_bytes(content)
        digests.add(digest_samples([file])[file])
    assert len(digests) == 6
