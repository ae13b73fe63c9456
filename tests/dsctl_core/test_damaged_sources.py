"""Whatever is read from outside is accepted, or refused by a DsctlError: no damage ends in another exception."""

from __future__ import annotations

import json
import shutil
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from dsctl_core.cache.manifest import INDEX_FILE, MANIFEST_FILE
from dsctl_core.cache.reader import CachedDataset
from dsctl_core.checkpoint.build import empty_component
from dsctl_core.checkpoint.identify import weight_files
from dsctl_core.checkpoint.load import read_index
from dsctl_core.checkpoint.schedule import read_schedule
from dsctl_core.data import UnifiedDataset
from dsctl_core.families import families, find_preset, identify_folder
from dsctl_core.files.digest import digest, digest_file
from dsctl_core.files.safetensors import read_safetensors
from dsctl_core.lora.files import read_lora
from dsctl_core.lora.peft_config import ADAPTER_CONFIG, ADAPTER_FILE
from dsctl_core.options import InferOptions, TrainOptions
from dsctl_core.options.config_file import read_toml
from dsctl_core.training.optim.optimizer import plan_optimizer
from dsctl_core.training.state.folder import find_state
from tests.mutations import accepted_or_refused, damaged_texts, damaged_values

Draw = Callable[..., Any]
WRITTEN = Path(__file__).parents[1] / "written_before"
few = settings(max_examples=30)


@pytest.fixture(scope="module")
def place():
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def header_of(tensors: dict[str, torch.Tensor], file: Path) -> tuple[dict[str, Any], bytes]:
    save_file(tensors, file, metadata={"format": "pt", "note": "x"})
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


@few
@given(st.data())
def test_a_safetensors_header(place, data):
    file = place / "h.safetensors"
    header, body = header_of({"a": torch.ones(2, 3), "b": torch.ones(4, dtype=torch.float16)}, file)
    text = data.draw(damaged_texts(header)).encode("utf-8", "surrogatepass")
    file.write_bytes(struct.pack("<Q", len(text)) + text + body)
    accepted_or_refused(lambda: read_safetensors(file))


@few
@given(st.data())
def test_a_manifest_of_a_state(place, data):
    folder = place / "out" / "state" / "step-3"
    shutil.rmtree(place / "out", ignore_errors=True)
    shutil.copytree(WRITTEN / "run" / "state" / "step-3", folder)
    name = data.draw(st.sampled_from(["manifest.json", "state.json"]))
    damaged = data.draw(damaged_texts(json.loads((folder / name).read_text())))
    (folder / name).write_bytes(damaged.encode("utf-8", "surrogatepass"))
    if name == "state.json":
        manifest = json.loads((folder / "manifest.json").read_text())
        size = (folder / name).stat().st_size
        manifest["files"][name] = {"bytes": size, "sha256": digest_file(folder / name)}
        (folder / "manifest.json").write_text(json.dumps(manifest))
    accepted_or_refused(lambda: find_state(place / "out", folder))
    accepted_or_refused(lambda: find_state(place / "out", "latest"))


def read_cache(folder: Path) -> None:
    dataset = CachedDataset(folder)
    dataset.check_shards()
    dataset.buckets(())
    for row in range(len(dataset)):
        assert dataset[row]


@few
@given(st.data())
def test_a_manifest_and_an_index_of_a_cache_with_right_checksums(place, data):
    folder = place / "cache"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(WRITTEN / "cache", folder)
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    if data.draw(st.booleans()):
        damaged = data.draw(damaged_texts(json.loads((folder / INDEX_FILE).read_text())))
        (folder / INDEX_FILE).write_bytes(damaged.encode("utf-8", "surrogatepass"))
        manifest["index"] = digest_file(folder / INDEX_FILE)
    else:
        manifest = data.draw(damaged_values(manifest))
    manifest.pop("checksum", None)
    (folder / MANIFEST_FILE).write_text(json.dumps({**manifest, "checksum": digest(manifest)}))
    accepted_or_refused(lambda: read_cache(folder))


@pytest.fixture(scope="module")
def tiny(place):
    folder = place / "tiny"
    shutil.copytree(find_preset("tiny")[1].local_path(), folder)
    return folder


@settings(max_examples=40)
@given(st.data())
def test_a_config_of_a_component(tiny, data):
    family = find_preset("tiny")[0]
    component = family.component(data.draw(st.sampled_from(["dit", "vae"])))
    file = tiny / component.folder / "config.json"
    before = file.read_bytes()
    try:
        damaged = data.draw(damaged_texts(json.loads(before)))
        file.write_bytes(damaged.encode("utf-8", "surrogatepass"))
        with torch.device("meta"):
            accepted_or_refused(lambda: empty_component(component, tiny / component.folder))
    finally:
        file.write_bytes(before)


@few
@given(st.data())
def test_the_index_of_a_model_its_schedule_and_an_index_of_shards(place, data):
    folder = place / "index"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "sub").mkdir(parents=True)
    family = data.draw(st.sampled_from(list(families().values())))
    index = {"_class_name": family.pipeline_classes[0], "is_distilled": True, "vae": ["diffusers", "X"]}
    index |= {name: value for preset in family.presets for name, value in preset.index.items()}
    scheduler = {"shift": 3.0, "use_dynamic_shifting": True, "base_shift": 0.5, "shift_terminal": None}
    shards = {"metadata": {}, "weight_map": {"a": "x.safetensors", "b": "sub/y.safetensors"}}
    for name, value in (("model_index.json", index), ("s.json", scheduler), ("m.safetensors.index.json", shards)):
        (folder / name).write_bytes(data.draw(damaged_texts(value)).encode("utf-8", "surrogatepass"))

    def read_model_index() -> None:
        identify_folder(folder)
        read = read_index(family, folder)
        family.parts(None, read)
        if family.index_defaults is not None:
            family.index_defaults(read)

    accepted_or_refused(read_model_index)
    accepted_or_refused(lambda: read_schedule(family.schedule, folder / "s.json"))
    for name in ("x.safetensors", "sub/y.safetensors"):
        save_file({name[0]: torch.ones(1)}, folder / name)
    accepted_or_refused(lambda: weight_files(folder))


LORA = {
    "base_model.model.a.to_q.lora_A.weight": torch.ones(2, 4),
    "base_model.model.a.to_q.lora_B.weight": torch.ones(3, 2),
    "base_model.model.a.to_q.alpha": torch.tensor(2.0),
}
CONFIG = {"r": 2, "lora_alpha": 2, "alpha_pattern": {"a.to_q": 4}, "use_dora": False, "peft_type": "LORA"}
TENSORS = [
    torch.ones(()),
    torch.ones(2),
    torch.ones(0, 4),
    torch.ones(3, 0),
    torch.ones(2, 4, 1),
    torch.full((2, 4), torch.nan),
]
TENSORS += [torch.ones(2, 4, dtype=dtype) for dtype in (torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn)]


@few
@given(st.data())
def test_a_lora_file_and_its_settings(place, data):
    folder = place / "lora"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    tensors = dict(LORA)
    for _ in range(data.draw(st.integers(0, 2))):
        name = data.draw(st.sampled_from(sorted(tensors)))
        change = data.draw(st.sampled_from(["replace", "remove", "rename"]))
        kept = tensors.pop(name)
        if change != "remove":
            renamed = name.replace("lora_A", "lora_down") + "x" * (change == "rename")
            tensors[renamed if change == "rename" else name] = (
                data.draw(st.sampled_from(TENSORS)).clone() if change == "replace" else kept
            )
        if not tensors:
            break
    settings_text = data.draw(damaged_texts(CONFIG))
    noted = {"lora_adapter_metadata": settings_text.encode("utf-8", "replace").decode()}
    save_file(tensors, folder / ADAPTER_FILE)
    (folder / ADAPTER_CONFIG).write_bytes(settings_text.encode("utf-8", "surrogatepass"))
    save_file(tensors, place / "l.safetensors", metadata=noted)
    accepted_or_refused(lambda: read_lora(folder))
    accepted_or_refused(lambda: read_lora(place / "l.safetensors"))


ROWS = [{"image": "a.png", "prompt": "x", "seed": 1}, {"image": "b.png", "prompt": ["x", "y"], "seed": 2}]


@few
@given(st.data(), st.sampled_from(["json", "jsonl"]))
def test_a_table_of_a_dataset(place, data, suffix):
    from PIL import Image

    folder = place / "data"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (16, 16)).save(folder / name)
    texts = [data.draw(damaged_texts(row)) for row in ROWS] if suffix == "jsonl" else [data.draw(damaged_texts(ROWS))]
    (folder / f"metadata.{suffix}").write_bytes("\n".join(texts).encode("utf-8", "surrogatepass"))
    opened: list[UnifiedDataset] = []
    if accepted_or_refused(lambda: opened.append(UnifiedDataset(folder))):
        for number in range(len(opened[0])):
            accepted_or_refused(lambda number=number: opened[0][number])
            accepted_or_refused(lambda number=number: opened[0].preview(number, "image"))


VALUES = ["1", "-1", "no", "true", "none", "1e400", "nan", "'x'", "(1,2)", "(0.9,0.99)", "[1,[2]]", "9" * 400, "{1:2}"]
VALUES += ["1j", "(" * 300 + ")" * 300, "0.5", "b'x'", "(0.9,1e400)"]
NAMES = [
    "betas",
    "eps",
    "amsgrad",
    "fused",
    "foreach",
    "momentum",
    "nesterov",
    "dampening",
    "beta1",
    "decay_rate",
    "alpha",
]


@settings(max_examples=60)
@given(
    st.sampled_from(["adamw", "sgd", "adafactor", "torch.optim.RMSprop"]),
    st.sampled_from(NAMES),
    st.sampled_from(VALUES),
)
def test_an_argument_of_an_optimizer(optimizer, name, value):
    def plan() -> None:
        given = {"model": "tiny", "dataset_base_path": ".", "output_path": "out", "learning_rate": 1e-3}
        options = TrainOptions(**given, optimizer=optimizer, optimizer_args=f"{name}={value}")
        plan_optimizer(options.optim, 1e-3)([torch.nn.Parameter(torch.ones(2))])

    accepted_or_refused(plan)


@few
@given(st.data())
def test_an_option_in_json_and_a_toml_file(place, data):
    paths = data.draw(damaged_texts(["a.safetensors", ["b-1.safetensors", "b-2.safetensors"]]))
    inputs = data.draw(damaged_texts({"scale": 0.8, "image": {"a": [1]}}))
    given = {"prompt": "a cat", "output": "a.png"}
    accepted_or_refused(lambda: InferOptions(**given, model_paths=paths))
    accepted_or_refused(lambda: InferOptions(**given, model="tiny", template=("x",), template_inputs=(inputs,)))
    file = place / "run.toml"
    file.write_bytes(f"a = {inputs}\nb = {paths}".encode("utf-8", "surrogatepass"))
    accepted_or_refused(lambda: read_toml(file, "--config"))
