"""Templates on every family: pictures, training in one stage and in two, and a base that stays as it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dsctl_core.cache.manifest import read_manifest
from dsctl_core.checkpoint.model_config import ModelConfig
from dsctl_core.commands.cache import make_cache
from dsctl_core.commands.train import train
from dsctl_core.families import families, load_family, pipeline_class
from dsctl_core.files.safetensors import read_safetensors
from dsctl_core.media.kv_cache import block_heads
from dsctl_core.options import CacheOptions, TrainOptions
from dsctl_core.options.template import TemplateSource
from dsctl_core.template.pipeline import TemplatePipeline
from dsctl_core.template.training import open_template
from dsctl_core.template.trust import Trust
from dsctl_core.training.model.task_module import TaskModule
from tests.contract.media import pixels_of, shown
from tests.templates import BRIGHTNESS, WORDS, write_template
from tests.tiny_models import write_tiny_model

SIZE = {"height": 32, "width": 32}
# What a template can return for each family: tokens for the prompt, and for attention where blocks can take them.
USES = [
    (family.name, output)
    for family in families().values()
    for output in (("kv_cache", "prompt_embeds") if family.attention_blocks else ("prompt_embeds",))
]


@pytest.fixture(scope="module", params=USES, ids="-".join)
def use(request: pytest.FixtureRequest) -> tuple[str, str]:
    return request.param


@pytest.fixture(scope="module")
def name(use: tuple[str, str]) -> str:
    return use[0]


@pytest.fixture(scope="module")
def model(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(name, tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def pipe(name: str, model: Path) -> Any:
    configs = [ModelConfig(path=model)]
    return pipeline_class(load_family(name)).from_pretrained(
        torch_dtype=torch.float32, device="cpu", model_configs=configs
    )


@pytest.fixture
def template(use: tuple[str, str], pipe: Any, tmp_path: Path) -> Path:
    """A template of the family's tiny sizes, for every block of the transformer."""
    if use[1] == "prompt_embeds":
        embedder = next(unit for unit in pipe.units if "prompt_embeds" in unit.output_params)
        with torch.no_grad():
            text_width = embedder.process(pipe, prompt="a")["prompt_embeds"].shape[-1]
        return write_template(tmp_path / "template", WORDS.replace("width=32", f"width={text_width}"))
    blocks = block_heads(pipe.dit, pipe.family.attention_blocks)
    ((heads, width),) = set(blocks.values())
    code = BRIGHTNESS.replace("heads=2, width=16", f"heads={heads}, width={width}")
    changed = code.replace('[f"double_{i}" for i in range(blocks)]', f"{list(blocks)}")
    assert changed != code
    return write_template(tmp_path / "template", changed)


def picture(number: int) -> Image.Image:
    small = np.random.default_rng(number).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((32, 32), Image.Resampling.BICUBIC)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    rows = []
    for number in range(3):
        picture(number).save(folder / f"{number}.png")
        given = {"scale": number / 3, "gain": number / 3}
        rows.append({"image": f"{number}.png", "prompt": f"number {number}", "template_inputs": given})
    (folder / "metadata.json").write_text(json.dumps(rows))
    return folder


def test_every_family_is_seen() -> None:
    assert {name for name, _ in USES} == set(families()) >= {"qwen-image", "flux2", "wan"}
    assert {output for _, output in USES} == {"kv_cache", "prompt_embeds"}


def test_a_template_steers_pictures_and_leaves_nothing_behind(pipe: Any, template: Path) -> None:
    templates = TemplatePipeline.from_pretrained(
        torch_dtype=torch.float32, device="cpu", model_configs=[ModelConfig(path=template)], trust_template=True
    )
    frames = {} if pipe.family.time_division is None else {"num_frames": 5}
    sides = {**SIZE, **shown(pipe.family, **SIZE)}
    settings: dict[str, Any] = {**sides, **frames, "num_inference_steps": 2, "cfg_scale": 2.0, "seed": 1}

    def made(**more: Any) -> bytes:
        call = templates if more else (lambda pipe, **given: pipe(**given))
        return pixels_of(call(pipe, prompt="a fox", **settings, **more)).tobytes()

    plain = made()
    before = {key: tensor.clone() for key, tensor in pipe.state_dict().items()}
    weak, strong = ({"scale": value, "gain": value} for value in (0.2, 0.9))
    pictures = [made(template_inputs=[weak]), made(template_inputs=[strong])]
    pictures.append(made(template_inputs=[strong], negative_template_inputs=[weak]))
    pictures.append(made(template_inputs=[strong, weak]))
    assert len({plain, *pictures}) == 5
    assert made() == plain
    assert all(torch.equal(tensor, before[key]) for key, tensor in pipe.state_dict().items())


@pytest.mark.parametrize("use", [use for use in USES if use[1] == "kv_cache"], ids="-".join, indirect=True)
@pytest.mark.parametrize("length", [3, "heads"])
def test_a_template_in_the_layout_and_the_names_of_diffsynth_makes_the_same_picture(
    pipe: Any, name: str, tmp_path: Path, length: int | str
) -> None:
    family = load_family(name)
    blocks = block_heads(pipe.dit, family.attention_blocks[:1])
    ((heads, width),) = set(blocks.values())
    tokens = heads if length == "heads" else length
    sizes = f"blocks={len(blocks)}, heads={heads}, width={width}, length={tokens}"
    ours = BRIGHTNESS.replace("blocks=2, heads=2, width=16, length=3", sizes)
    ours = ours.replace("double_", f"{family.attention_blocks[0].cache_name}_")
    forms = [ours, ours.replace("self.heads, -1)\n", "self.heads, -1).transpose(1, 2)\n")]
    forms += [
        each.replace(f"{family.attention_blocks[0].cache_name}_", f"{other}_")
        for other in family.attention_blocks[0].other_cache_names
        for each in forms
    ]
    made = []
    for number, code in enumerate(forms):
        torch.manual_seed(0)
        templates = TemplatePipeline.from_pretrained(
            torch_dtype=torch.float32,
            device="cpu",
            model_configs=[ModelConfig(path=write_template(tmp_path / f"{number}", code))],
            trust_template=True,
        )
        sides = {**SIZE, **shown(family, **SIZE)}
        settings: dict[str, Any] = {**sides, "num_inference_steps": 2, "cfg_scale": 1.0, "seed": 1}
        picture = templates(pipe, prompt="a fox", **settings, template_inputs=[{"scale": 0.9}])
        made.append(pixels_of(picture).tobytes())
    assert len(made) == len(set(forms)) == (4 if name.startswith("qwen-image") else 2)
    if length == "heads":  # as many tokens as heads: the shape ends in (H, D), so it is read as (B, T, H, D)
        assert len(set(made)) == 2
        assert made[2:] in ([], made[:2])
    else:
        assert len(set(made)) == 1


def test_training_moves_the_template_alone_whether_or_not_blocks_are_recomputed(pipe: Any, template: Path) -> None:
    side_network = open_template(TemplateSource(str(template)), Trust(granted=True), ["template_model"], required=True)
    side_network.attach(pipe)
    training = TaskModule(pipe, "sft", extra_inputs=["template_inputs"], trainable_models="template_model")
    row = {"image": picture(0), "prompt": "a fox", "seed": 1, "template_inputs": {"scale": 0.3, "gain": 0.3}}
    before = {key: tensor.clone() for key, tensor in training.named_parameters()}
    gradients = []
    for checkpointing in (False, True):
        training.run_time_inputs["use_gradient_checkpointing"] = checkpointing
        training.zero_grad()
        training(row).backward()
        gradients.append({key: tensor.grad.clone() for key, tensor in training.trainable_parameters()})
    assert gradients[0].keys() == {key for key in before if key.startswith("pipe.template_model.")} != set()
    for key, gradient in gradients[0].items():
        assert gradient.abs().max() > 0, key
        torch.testing.assert_close(gradients[1][key], gradient, atol=1e-6, rtol=1e-4)
    torch.optim.SGD(training.trainable_modules(), lr=0.1).step()
    for key, tensor in training.named_parameters():
        assert torch.equal(tensor, before[key]) != key.startswith("pipe.template_model."), key


def test_two_stages_give_the_numbers_of_one(model: Path, template: Path, data: Path, tmp_path: Path) -> None:
    base: dict[str, Any] = {"template": str(template), "trust_template": True, "device": "cpu"}
    named = {"model": str(model), "dataset_base_path": data, "extra_inputs": ("template_inputs",)}
    more = {"trainable_models": ("template_model",), "max_steps": 5, "learning_rate": 1e-2, "seed": 2}
    make_cache(CacheOptions(**base, **named, output_path=tmp_path / "cache"))
    recipe = read_manifest(tmp_path / "cache").recipe
    assert "template_model" in recipe.components
    assert "dit" not in recipe.components
    whole = train(TrainOptions(**base, **named, **more, cache=False, output_path=tmp_path / "whole"))
    second = train(TrainOptions(**base, **more, from_cache=tmp_path / "cache", output_path=tmp_path / "second"))
    one, other = (read_safetensors(result.checkpoint)[0] for result in (whole, second))
    assert whole.final_loss == second.final_loss
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
