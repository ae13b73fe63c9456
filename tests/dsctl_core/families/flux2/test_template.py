"""Templates on FLUX.2: through the kv_cache of both kinds of blocks and behind the prompt, trained in two stages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dsctl_core.checkpoint.model_config import ModelConfig
from dsctl_core.commands.cache import make_cache
from dsctl_core.commands.train import train
from dsctl_core.files.safetensors import read_safetensors
from dsctl_core.options import CacheOptions, TrainOptions
from dsctl_core.template.pipeline import TemplatePipeline
from tests.dsctl_core.families.flux2.conftest import Pair
from tests.templates import BRIGHTNESS, write_template

KV = BRIGHTNESS.replace(
    'names = [f"double_{i}" for i in range(blocks)]', 'names = ["double_0", "single_0", "single_1"]'
)
WORDS = """
import torch


class Words(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.words = torch.nn.Parameter(torch.randn(1, 3, 48))

    @torch.no_grad()
    def process_inputs(self, scale, **kwargs):
        return {"scale": scale}

    def forward(self, scale, **kwargs):
        return {"prompt_embeds": self.words * scale}


class DataProcessor:
    def __call__(self, scale, **kwargs):
        return {"scale": scale}


TEMPLATE_MODEL = Words
TEMPLATE_DATA_PROCESSOR = DataProcessor
"""
SMALL: dict[str, Any] = {"height": 32, "width": 48, "num_inference_steps": 2, "cfg_scale": 1.0, "seed": 1}


def opened(*folders: Path) -> TemplatePipeline:
    return TemplatePipeline.from_pretrained(
        torch_dtype=torch.float32,
        device="cpu",
        model_configs=[ModelConfig(path=folder) for folder in folders],
        trust_template=True,
    )


def difference(a: Any, b: Any) -> float:
    return float(np.abs(np.array(a).astype(float) - np.array(b).astype(float)).max())


def test_templates_steer_a_picture_alone_and_together_and_leave_nothing_behind(pair: Pair, tmp_path: Path) -> None:
    kv, words = write_template(tmp_path / "kv", KV), write_template(tmp_path / "words", WORDS)
    plain = pair.ours("a", **SMALL)
    given = {"scale": 0.5}
    one = opened(kv)(pair.ours, prompt="a", template_inputs=[given], **SMALL)
    other = opened(words)(pair.ours, prompt="a", template_inputs=[given], **SMALL)
    both = opened(kv, words)(
        pair.ours, prompt="a", template_inputs=[{"model_id": 0, **given}, {"model_id": 1, **given}], **SMALL
    )
    pictures = [plain, one, other, both]
    assert all(difference(a, b) > 0 for n, a in enumerate(pictures) for b in pictures[n + 1 :])
    assert difference(pair.ours("a", **SMALL), plain) == 0


@pytest.mark.parametrize("code", [KV, WORDS], ids=["kv_cache", "prompt_embeds"])
def test_a_template_is_trained_from_a_cache_with_the_same_numbers(klein: Pair, tmp_path: Path, code: str) -> None:
    data = tmp_path / "data"
    data.mkdir()
    rows = []
    for number in range(3):
        Image.effect_noise((48, 32), 20 + 20 * number).convert("RGB").save(data / f"{number}.png")
        rows.append({"image": f"{number}.png", "prompt": f"number {number}", "template_inputs": {"scale": number / 3}})
    (data / "metadata.json").write_text(json.dumps(rows))
    folder = write_template(tmp_path / "template", code)
    common = {"template": str(folder), "trust_template": True, "device": "cpu", "mixed_precision": "no"}
    source = {"model": str(klein.folder), "dataset_base_path": data, "extra_inputs": ("template_inputs",)}
    steps = {"trainable_models": ("template_model",), "max_steps": 4, "seed": 3, "learning_rate": 1e-2, "batch_size": 3}
    plain = train(TrainOptions(**common, **source, **steps, cache=False, output_path=tmp_path / "plain"))
    make_cache(CacheOptions(**common, **source, trainable_models=("template_model",), output_path=tmp_path / "cache"))
    cached = train(TrainOptions(**common, **steps, from_cache=tmp_path / "cache", output_path=tmp_path / "cached"))
    one, other = (read_safetensors(result.checkpoint)[0] for result in (plain, cached))
    assert one.keys() == other.keys()
    assert not any(name.startswith("pipe.") or "transformer" in name for name in one)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert plain.final_loss == cached.final_loss
