"""A dry run goes the way of the run: with every task and with a template, from a dataset and from a cache."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dsctl.app import main
from dsctl_core.commands.cache import make_cache
from dsctl_core.commands.train import dry_run, train
from dsctl_core.errors import DsctlError
from dsctl_core.files.safetensors import read_safetensors
from dsctl_core.options import CacheOptions, TrainOptions

DISTILL = {"task": "direct_distill"}
TEMPLATE = {"extra_inputs": "template_inputs", "template": "t", "trust_template": True}


@pytest.fixture
def data() -> str:
    """Write pictures with what distillation and a template need."""
    Path("data").mkdir()
    rows: list[dict[str, Any]] = []
    for number, name in enumerate(("red", "blue")):
        Image.new("RGB", (48, 32), name).save(f"data/{name}.png")
        distill = {"num_inference_steps": "2", "cfg_scale": "2", "seed": str(number)}  # text, as in a CSV file
        rows.append({"image": f"{name}.png", "prompt": name, "template_inputs": {"scale": 0.5}, **distill})
    Path("data/metadata.json").write_text(json.dumps(rows), encoding="utf-8")
    return "data"


@pytest.mark.parametrize("source", ["dataset", "own cache", "cache"])
@pytest.mark.parametrize("kind", [DISTILL, TEMPLATE], ids=["direct_distill", "template"])
def test_a_dry_run_counts_what_the_run_has(tiny_folder: Path, data: str, kind: dict[str, Any], source: str):
    assert main(["template", "init", "t", "--model", str(tiny_folder)]) == 0
    model = {"model": str(tiny_folder), "dataset_base_path": data, "device": "cpu"}
    asked: dict[str, Any] = {**model, **kind, "output_path": "out", "max_steps": 4 if source == "own cache" else 2}
    asked |= {"lora_rank": 2} if kind is DISTILL else {"trainable_models": "template_model"}
    if source == "cache":
        make_cache(CacheOptions(**model, **kind, output_path="cache"))
        asked = {name: value for name, value in asked.items() if name not in ("model", "dataset_base_path", *kind)}
        asked |= {"from_cache": "cache", "trust_template": kind is TEMPLATE}
    found = dry_run(TrainOptions(**asked))
    assert not Path("out").exists()
    result = train(TrainOptions(**asked))
    run = json.loads(Path("out/run.json").read_text(encoding="utf-8"))
    assert {name: found.parameters[name] for name in run["parameters"]} == run["parameters"]
    assert found.steps == result.steps == asked["max_steps"]
    assert found.disk["checkpoints"] == sum(w.nbytes for w in read_safetensors(result.checkpoint)[0].values())
    assert (found.disk["cache"] > 0) == Path("out/cache").exists() == (source == "own cache")
    assert found.memory.activations > 0


def test_a_template_that_looks_at_numbers_is_refused_by_a_dry_run(tiny_folder: Path, data: str):
    assert main(["template", "init", "t", "--model", str(tiny_folder)]) == 0
    code = Path("t/model.py")
    text = code.read_text(encoding="utf-8")
    line = "        encoded = encoded.to(self.tokens.weight)\n"
    looking = text.replace(line, f"{line}        assert self.encode(encoded).sum().item() < 1e9\n")
    assert looking != text
    code.write_text(looking, encoding="utf-8")
    asked = {"model": str(tiny_folder), "dataset_base_path": data, "output_path": "out", **TEMPLATE}
    options = TrainOptions(**asked, trainable_models="template_model", device="cpu")
    with pytest.raises(DsctlError, match=r"t/model.py, line \d+: forward failed") as caught:
        dry_run(options)
    assert "leave --dry-run out" in (caught.value.hint or "")
