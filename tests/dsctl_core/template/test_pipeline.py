"""Making pictures with templates: alone, together, on both sides of guidance, and gone afterwards."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dsctl_core.checkpoint.model_config import ModelConfig
from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.template import pipeline as module
from dsctl_core.template.pipeline import TemplatePipeline
from tests.templates import BRIGHTNESS, LORA, WORDS

Write = Callable[..., Path]


def opened(*folders: Path, **settings: Any) -> TemplatePipeline:
    return TemplatePipeline.from_pretrained(
        torch_dtype=torch.float32,
        device="cpu",
        model_configs=[ModelConfig(path=folder) for folder in folders],
        trust_template=True,
        **settings,
    )


def same(one: Any, other: Any) -> bool:
    return bool(np.array_equal(np.array(one), np.array(other)))


def outputs(templates: TemplatePipeline, pipe: Any, *given: dict[str, Any]) -> dict[str, Any]:
    return templates.outputs(pipe, given)


def velocity(pipe: Any, made: Sequence[dict[str, Any]] = ({},), cfg_scale: float = 1.0, **more: Any) -> torch.Tensor:
    """The velocity at one noise level, of the units' inputs with what templates made."""
    from dsctl_core.template.units import GivenTemplateOutputs

    shared, posi, nega = pipe.inputs_from_rows([{"image": _picture(), "prompt": "a fox", "seed": 1}])
    shared["cfg_scale"] = cfg_scale
    with torch.no_grad(), pipe.more_units([GivenTemplateOutputs(pipe, *(*made, {})[:2])]):
        shared, posi, nega = pipe.run_units(shared, posi, nega)
        shared["latents"] = shared["noise"]
        return pipe.call_model_fn(timestep=torch.tensor([500.0]), **{**shared, **posi, **more})


def _picture() -> Any:
    from PIL import Image

    return Image.new("RGB", (48, 32), (200, 30, 60))


def state_of(pipe: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in pipe.state_dict().items()}


def test_a_template_steers_this_call_and_no_other(template: Write, pipe: Any, picture: Any) -> None:
    templates = opened(template())
    plain, before = picture(), state_of(pipe)
    dark, light = (picture(templates, template_inputs=[{"scale": scale}]) for scale in (0.1, 0.9))
    assert not same(dark, plain)
    assert not same(dark, light)
    assert same(picture(templates, template_inputs=[{"scale": 0.1}]), dark)
    assert same(picture(), plain)
    assert all(torch.equal(tensor, before[name]) for name, tensor in pipe.state_dict().items())
    assert len(pipe.units) == 6


def test_the_specs_snippet_needs_no_inputs_on_the_other_side(template: Write, picture: Any) -> None:
    templates = opened(template())
    steered = picture(templates, template_inputs=[{"scale": 0.3}], cfg_scale=4)
    assert not same(steered, picture(cfg_scale=4))


def test_both_sides_of_guidance_have_their_own_cache(template: Write, pipe: Any, picture: Any) -> None:
    templates = opened(template())
    given: dict[str, Any] = {"cfg_scale": 3.0, "template_inputs": [{"scale": 0.9}]}
    one_side = picture(templates, **given)
    both = picture(templates, **given, negative_template_inputs=[{"scale": 0.1}])
    assert not same(one_side, both)
    seen = []
    original = pipe.model_fn

    def spy(**inputs: Any) -> torch.Tensor:
        seen.append(inputs["kv_cache"]["double_0"][0])
        return original(**inputs)

    spy.__signature__ = __import__("inspect").signature(original)  # type: ignore[attr-defined]
    pipe.model_fn = spy
    try:
        picture(templates, **given, negative_template_inputs=[{"scale": 0.1}], num_inference_steps=1)
    finally:
        pipe.model_fn = original
    for key, scale in zip(seen, (0.9, 0.1), strict=True):
        assert torch.equal(key, outputs(templates, pipe, {"scale": scale})["kv_cache"]["double_0"][0])


def test_negative_inputs_without_guidance_have_no_effect_and_are_refused(template: Write, picture: Any) -> None:
    with pytest.raises(UsageError, match="negative_template_inputs have no effect at a cfg_scale of 1"):
        picture(opened(template()), template_inputs=[], negative_template_inputs=[{"scale": 0.5}])


def test_caches_of_several_templates_stand_one_behind_the_other(template: Write, pipe: Any, picture: Any) -> None:
    first, second = template(name="a"), template(name="b")
    (second / "model.py").write_text(BRIGHTNESS.replace("length=3", "length=5"))
    templates = opened(first, second)
    made = outputs(templates, pipe, {"scale": 0.2, "model_id": 0}, {"scale": 0.7, "model_id": 1})["kv_cache"]
    one = outputs(opened(first), pipe, {"scale": 0.2})["kv_cache"]
    two = outputs(opened(second), pipe, {"scale": 0.7})["kv_cache"]
    for name in one:
        for part in (0, 1):
            assert torch.equal(made[name][part], torch.cat([one[name][part], two[name][part]], dim=1))
    assert made["double_0"][0].shape[1] == 8
    together = picture(templates, template_inputs=[{"scale": 0.2, "model_id": 0}, {"scale": 0.7, "model_id": 1}])
    assert not same(together, picture(opened(first), template_inputs=[{"scale": 0.2}]))


def test_a_lora_is_in_force_for_the_call_and_removed_to_the_bit(template: Write, pipe: Any, picture: Any) -> None:
    templates = opened(template(LORA))
    plain, before = picture(), state_of(pipe)
    steered = picture(templates, template_inputs=[{"strength": 3}])
    assert not same(steered, plain)
    assert same(picture(), plain)
    assert list(pipe.state_dict()) == list(before)
    assert all(torch.equal(tensor, before[name]) for name, tensor in pipe.state_dict().items())
    assert not any(each._forward_hooks for each in pipe.modules())


def test_a_lora_computes_what_fused_weights_do_and_several_are_summed(template: Write, pipe: Any) -> None:
    templates = opened(template(LORA, name="a"), template(LORA, name="b"))
    lora = [outputs(templates, pipe, {"strength": s, "model_id": i}) for i, s in ((0, 0.5), (1, 2.0))]
    both = outputs(templates, pipe, {"strength": 0.5, "model_id": 0}, {"strength": 2.0, "model_id": 1})
    steered = velocity(pipe, [both])
    before = state_of(pipe)
    with torch.no_grad():
        for each in lora:
            for name, updates in each["lora"]["dit"].items():
                for update in updates:
                    pipe.dit.get_submodule(name).weight += update.scale * update.up @ update.down
    expected = velocity(pipe)
    pipe.load_state_dict(before)
    assert not torch.allclose(velocity(pipe), expected, atol=1e-3)
    torch.testing.assert_close(steered, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("prompts", ["a fox", ["a fox", "a very long story of a fox"]])
def test_text_embeddings_are_appended_to_those_of_the_prompt(template: Write, pipe: Any, prompts: Any) -> None:
    templates = opened(template(WORDS, name="a"), template(WORDS, name="b"))
    given = [{"gain": 1, "model_id": 0}, {"gain": 2, "model_id": 1}]
    made = outputs(templates, pipe, *given)
    plain, steered = {}, {}
    from dsctl_core.template.units import GivenTemplateOutputs

    with torch.no_grad():
        for extra, found in (({}, plain), (made, steered)):
            with pipe.more_units([GivenTemplateOutputs(pipe, extra, {})]):
                shared = {"height": 32, "width": 32, "cfg_scale": 1, "seed": 0}
                found.update(pipe.run_units(shared, {"prompt": prompts}, {})[1])
    words = plain["prompt_embeds"].shape[1]
    assert torch.equal(steered["prompt_embeds"][:, :words], plain["prompt_embeds"])
    table = templates._template(0).model.table
    for sample in steered["prompt_embeds"][:, words:]:
        assert torch.equal(sample, torch.cat([table + 1, table + 2], dim=1)[0])
    if isinstance(prompts, list):
        assert torch.equal(steered["prompt_embeds_mask"][:, :words], plain["prompt_embeds_mask"])
        assert steered["prompt_embeds_mask"][:, words:].all()
    else:
        assert steered["prompt_embeds_mask"] is None
    settings = {"height": 32, "width": 32, "num_inference_steps": 1, "cfg_scale": 1.0, "seed": 0}
    pictures = [pipe(prompts, **settings), templates(pipe, prompt=prompts, **settings, template_inputs=given)]
    before, after = (each if isinstance(prompts, list) else [each] for each in pictures)
    assert not any(same(one, other) for one, other in zip(before, after, strict=True))


def test_two_templates_that_write_the_same_other_name_are_both_named(template: Write, pipe: Any) -> None:
    code = WORDS.replace('"prompt_embeds": self.table + gain', '"use_gradient_checkpointing": True')
    templates = opened(template(code, name="one"), template(code, name="two"))
    with pytest.raises(DsctlError, match=r"templates .*one and .*two both return 'use_gradient_checkpointing'"):
        outputs(templates, pipe, {"model_id": 0}, {"model_id": 1})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("transformer_blocks.0.attn.to_q", "transformer_blocks.7.attn.to_q"), "layers is not in this one"),
        (("(32, 32)", "(32, 31)"), "is 32x32 here and 32x31 in the LoRA"),
        (('f"{name}.lora_A', 'f"text_encoder.{name}.lora_A'), "text_encoder|only one of the two"),
        (('return {"lora": lora}', 'return {"lora": [lora]}'), "its lora is not a state dict"),
    ],
)
def test_a_lora_that_does_not_fit_is_refused(template: Write, pipe: Any, change: tuple[str, str], said: str) -> None:
    with pytest.raises(DsctlError, match=said):
        outputs(opened(template(LORA.replace(*change))), pipe, {})


def test_among_several_templates_each_input_says_which_it_is_for(template: Write, pipe: Any) -> None:
    templates = opened(template(name="a"), template(name="b"))
    for given, said in (
        ({"scale": 1}, "has no model_id, but there are 2 templates"),
        ({"scale": 1, "model_id": 2}, "model_id 2 is not one of the 2 templates"),
        ({"scale": 1, "model_id": "0"}, "model_id '0' is not one of"),
        ("scale", "template_inputs is 'scale', not a dict"),
    ):
        with pytest.raises(UsageError, match=said):
            templates.outputs(pipe, [given])  # type: ignore[list-item]


def test_lazy_loading_holds_one_template_at_a_time(template: Write, pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[weakref.ref[Any]] = []
    most = 0
    original = module.load_template

    def counted(*given: Any, **more: Any) -> Any:
        nonlocal most
        gc.collect()
        made = original(*given, **more)
        alive.append(weakref.ref(made.model))
        most = max(most, sum(each() is not None for each in alive))
        return made

    monkeypatch.setattr(module, "load_template", counted)
    folders = [template(name=name) for name in "abc"]
    lazy = opened(*folders, lazy_loading=True)
    assert not alive
    given = [{"scale": number / 3, "model_id": number} for number in range(3)]
    made = outputs(lazy, pipe, *given)
    assert len(alive) == 3
    assert most == 1
    expected = outputs(opened(*folders), pipe, *given)
    assert torch.equal(made["kv_cache"]["double_1"][1], expected["kv_cache"]["double_1"][1])


def test_a_checkpoint_of_a_training_is_used(template: Write, pipe: Any, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    folder = template(WORDS)
    save_file({"table": torch.full((1, 3, 32), 0.25)}, tmp_path / "trained.safetensors")
    templates = opened(folder, checkpoints=[tmp_path / "trained.safetensors"])
    assert torch.equal(outputs(templates, pipe, {})["prompt_embeds"], torch.full((1, 3, 32), 1.25))
    with pytest.raises(UsageError, match="there are 2 checkpoints for 1 template"):
        opened(folder, checkpoints=[None, None])


def test_without_any_template_there_is_no_pipeline() -> None:
    with pytest.raises(UsageError, match="there is no template"):
        TemplatePipeline.from_pretrained(model_configs=[])
