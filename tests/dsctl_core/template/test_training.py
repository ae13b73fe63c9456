"""Training a template: what is trained and what is not, in one stage and in two, and what the file holds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from dsctl_core.cache.manifest import read_manifest
from dsctl_core.checkpoint.model_config import ModelConfig
from dsctl_core.commands.cache import make_cache
from dsctl_core.commands.train import train
from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.files.safetensors import read_safetensors
from dsctl_core.options import CacheOptions, TrainOptions
from dsctl_core.template.pipeline import TemplatePipeline
from dsctl_core.training.model.task_module import TaskModule
from dsctl_core.training.plan.cache_check import CacheMismatch
from tests.templates import BRIGHTNESS, ENCODER, LORA, WORDS

Write = Callable[..., Path]
COLOURS = [[0.1, 0.2, 0.3, 0.4], [0.9, 0.2, 0.1, 0.0], [0.5, 0.5, 0.5, 0.5], [0.0, 1.0, 0.0, 1.0]]


@pytest.fixture
def data(tmp_path: Path) -> Callable[..., Path]:
    """Write four pictures with what each template is given."""

    def write(*given: Any, name: str = "data") -> Path:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        rows = []
        for number, each in enumerate(given or [{"scale": n / 4} for n in range(4)]):
            Image.effect_noise((48, 32), 20 + 20 * number).convert("RGB").save(folder / f"{number}.png")
            row = {"image": f"{number}.png", "prompt": f"number {number}"}
            rows.append(row if each is None else {**row, "template_inputs": each})
        (folder / "metadata.json").write_text(json.dumps(rows))
        return folder

    return write


@pytest.fixture
def run(model_folder: Path, tmp_path: Path) -> Callable[..., Any]:
    """Train the template, or with `first=True` make a cache for that."""

    def start(folder: Path | None, out: str = "out", first: bool = False, **settings: Any) -> Any:
        base: dict[str, Any] = {"output_path": tmp_path / out, "device": "cpu", "trust_template": folder is not None}
        if folder is not None:
            base["template"] = str(folder)
        if "from_cache" not in settings:
            base |= {"model": str(model_folder), "extra_inputs": ("template_inputs",)}
        if first:
            return make_cache(CacheOptions(**{**base, **settings}))
        base |= {"max_steps": 8, "seed": 3, "learning_rate": 1e-2, "trainable_models": ("template_model",)}
        return train(TrainOptions(**{**base, **settings}))

    return start


def losses(result: Any) -> list[float]:
    lines = (result.output_path / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def weights(result: Any) -> dict[str, torch.Tensor]:
    return read_safetensors(result.checkpoint)[0]


def module(pipe: Any, template: Path, **settings: Any) -> TaskModule:
    """A training module of the python API, on a pipeline that it may keep."""
    import copy

    from dsctl_core.options.template import TemplateSource
    from dsctl_core.template.training import open_template
    from dsctl_core.template.trust import Trust

    own = copy.deepcopy(pipe)
    names = settings.setdefault("trainable_models", ["template_model"])
    open_template(TemplateSource(str(template)), Trust(granted=True), names, required=True).attach(own)
    return TaskModule(own, "sft", extra_inputs=["template_inputs"], **settings)


def row(number: int = 0, given: Any = None) -> dict[str, Any]:
    small = np.random.default_rng(number).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    picture = Image.fromarray(small).resize((48, 32), Image.Resampling.BICUBIC)
    return {"image": picture, "prompt": f"number {number}", "seed": number, "template_inputs": given or {"scale": 0.3}}


@pytest.mark.parametrize("code", [BRIGHTNESS, WORDS, LORA], ids=["kv_cache", "prompt_embeds", "lora"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_reach_the_template_and_nothing_else(
    template: Write, pipe: Any, code: str, checkpointing: bool
) -> None:
    given = {"scale": 0.3} if code is BRIGHTNESS else {"gain": 1}
    training = module(pipe, template(code), use_gradient_checkpointing=checkpointing)
    before = {name: each.clone() for name, each in training.named_parameters()}
    optimizer = torch.optim.SGD(training.trainable_modules(), lr=0.05)
    seen = []
    for _ in range(5):
        loss = training(row(given=given))
        seen.append(loss.item())
        loss.backward()
        optimizer.step()
        if len(seen) == 1:
            gradients = {name: each.grad.clone() for name, each in training.trainable_parameters()}
        optimizer.zero_grad()
    assert seen[-1] < seen[0]
    assert all(name.startswith("pipe.template_model.") for name in gradients)
    assert all(gradient.abs().max() > 0 for gradient in gradients.values())
    for name, each in training.named_parameters():
        assert torch.equal(each, before[name]) != name.startswith("pipe.template_model."), name
    assert not any(each._forward_hooks for each in training.modules())
    if checkpointing:
        plain = module(pipe, template(code))
        plain(row(given=given)).backward()
        for name, each in plain.trainable_parameters():
            torch.testing.assert_close(each.grad, gradients[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("code", [BRIGHTNESS, WORDS, LORA], ids=["kv_cache", "prompt_embeds", "lora"])
def test_a_batch_is_the_mean_of_its_samples(template: Write, pipe: Any, code: str) -> None:
    given = [{"scale": 0.1, "gain": 0.1, "strength": 0.1}, {"scale": 0.9, "gain": 0.9, "strength": 0.9}]
    training = module(pipe, template(code))
    rows = [row(number, given[number]) for number in (0, 1)]
    alone = sum(training(each) for each in rows) / 2
    torch.testing.assert_close(training(rows), alone, atol=1e-5, rtol=1e-5)


def test_two_stages_give_the_numbers_of_one(template: Write, data: Any, run: Any, tmp_path: Path) -> None:
    folder, source = template(), data()
    whole = run(folder, "whole", dataset_base_path=source, cache=False, batch_size=2)
    auto = run(folder, "auto", dataset_base_path=source, batch_size=2)
    run(folder, "cache", first=True, dataset_base_path=source)
    second = run(folder, "second", from_cache=tmp_path / "cache", batch_size=2)
    for other in (auto, second):
        assert losses(other) == losses(whole)
        for name, tensor in weights(whole).items():
            assert torch.equal(weights(other)[name], tensor), name
    recipe = read_manifest(tmp_path / "cache").recipe
    assert set(recipe.components) == {"vae", "text_encoder", "template_model"}  # no dit
    assert "ProcessTemplateInputs" in dict(recipe.once)
    assert recipe.every_step[-1] == "RunTemplate"


def test_the_file_holds_the_template_and_where_it_comes_from(template: Write, data: Any, run: Any) -> None:
    result = run(template(), dataset_base_path=data(), max_steps=2)
    tensors, about = read_safetensors(result.checkpoint)
    names = dict(_fresh(template()).named_parameters())
    assert set(tensors) == set(names)
    assert about["component"] == "template_model"
    assert about["kind"] == "weights"
    assert about["template"] == str(template())
    assert len(about["template_sha256"]) == 64
    assert about["steps"] == "2"
    templates = TemplatePipeline.from_pretrained(
        torch_dtype=torch.float32,
        device="cpu",
        model_configs=[ModelConfig(path=template())],
        trust_template=True,
        checkpoints=[result.checkpoint],
    )
    made = templates._template(0).model.state_dict()
    assert all(torch.equal(made[name], tensor) for name, tensor in tensors.items())


def _fresh(folder: Path) -> torch.nn.Module:
    from dsctl_core.template.model import load_template
    from dsctl_core.template.trust import Trust

    return load_template(ModelConfig(path=folder), Trust(granted=True)).model


def test_training_goes_on_from_a_trained_file(template: Write, data: Any, run: Any) -> None:
    folder, source = template(), data()
    first = run(folder, "first", dataset_base_path=source, max_steps=4)
    settings: dict[str, Any] = {"dataset_base_path": source, "max_steps": 1, "learning_rate": 1e-9}
    second = run(Path(f"{folder}:{first.checkpoint}"), "second", **settings)
    for name, tensor in weights(first).items():
        torch.testing.assert_close(weights(second)[name], tensor, atol=1e-6, rtol=0)
    folder = template(name="own", TEMPLATE_MODEL_PATH="TEMPLATE_MODEL_PATH = 'w.safetensors'\nUNUSED")
    save_file(weights(first), folder / "w.safetensors")
    third = run(folder, "third", **settings)
    assert losses(third) == losses(second)


def test_a_part_is_trained_and_the_rest_stays_frozen(template: Write, data: Any, run: Any, tmp_path: Path) -> None:
    folder, source = template(ENCODER), data(*({"colour": colour} for colour in COLOURS))
    settings: dict[str, Any] = {"trainable_models": ("template_model.mlp",)}
    result = run(folder, dataset_base_path=source, cache=False, **settings)
    tensors, about = read_safetensors(result.checkpoint)
    assert set(tensors) == {"mlp.weight", "mlp.bias"}
    assert about["trained_parts"] == "mlp"
    made = _loaded(folder, result.checkpoint)
    assert torch.equal(made["encoder.weight"], _fresh(folder).state_dict()["encoder.weight"])
    run(folder, "cache", first=True, dataset_base_path=source, **settings)
    second = run(folder, "second", from_cache=tmp_path / "cache", **settings)
    assert losses(second) == losses(result)


def _loaded(folder: Path, checkpoint: Path) -> dict[str, torch.Tensor]:
    from dsctl_core.template.model import load_template
    from dsctl_core.template.trust import Trust

    return load_template(ModelConfig(path=folder), Trust(granted=True), checkpoint=checkpoint).model.state_dict()


def test_what_is_trained_may_not_be_used_in_the_first_half(
    template: Write, data: Any, run: Any, tmp_path: Path
) -> None:
    source = data(*({"colour": colour} for colour in COLOURS))
    for settings in ({"cache": False}, {}):
        with pytest.raises(DsctlError, match=r"row \d.*process_inputs uses encoder.bias, which is trained"):
            run(template(ENCODER), dataset_base_path=source, **settings)
        assert not (tmp_path / "out" / "run.json").exists()


MISTAKES = {
    "a trained weight": ("", "", "process_inputs uses encoder.bias, which is trained"),
    "no dict": ("return {", "return [] and {", "process_inputs returns a list, not a dict"),
    "an undefined name": ("return {", "nope\n        return {", "NameError: name 'nope' is not defined"),
}


@pytest.mark.parametrize("bad_sample", ["stop", "skip"])
@pytest.mark.parametrize("kind", MISTAKES)
def test_a_mistake_in_the_code_stops_the_run_and_no_sample_is_offered_to_be_skipped(
    template: Write, data: Any, run: Any, tmp_path: Path, kind: str, bad_sample: str
) -> None:
    old, new, said = MISTAKES[kind]
    code = ENCODER.replace(old, new, 1) if old else ENCODER
    settings: dict[str, Any] = {"trainable_models": ("template_model.mlp",)} if old else {}
    source = data(*({"colour": colour} for colour in COLOURS))
    with pytest.raises(DsctlError, match=said) as caught:
        run(template(code), dataset_base_path=source, on_bad_sample=bad_sample, **settings)
    assert "--on-bad-sample" not in str(caught.value.hint)


@pytest.mark.parametrize("change", ["code", "frozen weights", "trained parts"])
def test_a_cache_of_another_template_is_refused(
    template: Write, data: Any, run: Any, tmp_path: Path, change: str
) -> None:
    state = {name: tensor.clone() for name, tensor in _fresh(template(ENCODER)).state_dict().items()}
    folder = template(f"{ENCODER}\nTEMPLATE_MODEL_PATH = 'w.safetensors'\n")
    save_file(state, folder / "w.safetensors")
    settings: dict[str, Any] = {"trainable_models": ("template_model.mlp",)}
    run(folder, "cache", first=True, dataset_base_path=data(*({"colour": c} for c in COLOURS)), **settings)
    # What is trained may change: that is no other template.
    save_file({**state, "mlp.bias": state["mlp.bias"] + 1}, folder / "w.safetensors")
    run(folder, "fits", from_cache=tmp_path / "cache", max_steps=1, **settings)
    if change == "code":
        (folder / "model.py").write_text((folder / "model.py").read_text() + "\n# another\n")
    if change == "frozen weights":
        save_file({**state, "encoder.bias": state["encoder.bias"] + 1}, folder / "w.safetensors")
    if change == "trained parts":
        settings = {}
    with pytest.raises(CacheMismatch, match="with the template model sha256") as caught:
        run(folder, "out", from_cache=tmp_path / "cache", **settings)
    assert f"--template {folder}" in str(caught.value.hint)


def test_a_cache_says_which_template_it_is_for(template: Write, data: Any, run: Any, tmp_path: Path) -> None:
    folder = template()
    run(folder, "cache", first=True, dataset_base_path=data())
    settings: dict[str, Any] = {"from_cache": tmp_path / "cache", "max_steps": 2}
    named = run(folder, "named", **settings)
    with pytest.raises(UsageError, match="is not trusted"):
        run(None, "unnamed", **settings)
    again = run(None, "unnamed", **settings, trust_template=True)
    assert losses(again) == losses(named)


def test_a_file_that_a_row_names_counts_with_its_contents(template: Write, data: Any, run: Any, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("0.2")
    code = BRIGHTNESS.replace("def __call__(self, scale, **kwargs):\n", "def __call__(self, file, **kwargs):\n")
    code = code.replace('return {"scale": scale}', 'return {"scale": float(pathlib.Path(file).read_text())}')
    code = f"import pathlib\n{code}"
    source = data(*[{"file": str(tmp_path / "note.txt")}] * 2)
    assert run(template(code), "cache", first=True, dataset_base_path=source).encoded > 0
    assert run(template(code), "cache", first=True, dataset_base_path=source).encoded == 0
    (tmp_path / "note.txt").write_text("0.7")
    assert run(template(code), "cache", first=True, dataset_base_path=source).encoded == 1


@pytest.mark.parametrize("way", ["cache", "auto", "whole"])
def test_a_data_processor_that_fails_names_the_row(
    template: Write, data: Any, run: Any, tmp_path: Path, way: str
) -> None:
    source = data(*({"scale": 0.1 * number} if number != 6 else {"scale": "x"} for number in range(8)))
    code = BRIGHTNESS.replace('return {"scale": scale}', 'return {"scale": float(scale) / 1}')
    settings: dict[str, Any] = {"dataset_base_path": source, "batch_size": 3}
    settings |= {"first": True} if way == "cache" else {"cache": way == "auto", "max_steps": 40}
    said = r"row 7.*model.py, line \d+: the data processor failed on scale='x': ValueError"
    with pytest.raises(DsctlError, match=said) as caught:
        run(template(code), **settings)
    assert "\n" not in caught.value.problem
    if way == "cache":
        result = run(template(code), "skipping", **settings, on_bad_sample="skip")
        assert result.manifest.counts["entries"] == 7
        assert json.loads((tmp_path / "skipping" / "skipped.jsonl").read_text())["row"] == 6


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (None, "row 1.*template_inputs are None"),
        ("0.5", "row 1.*template_inputs are '0.5'"),
        ([], r"row 1.*template_inputs are \[\]"),
        ({"scale": 0.5, "model_id": 1}, "are for the template 1, but one template is trained at a time"),
        ({"brightness": 0.5}, "row 1.*missing 1 required positional argument: 'scale'"),
        ({"pipe": 0.5}, "a row has the name 'pipe', which is reserved"),
    ],
)
def test_a_row_without_what_the_template_needs_is_named(
    template: Write, data: Any, run: Any, given: Any, said: str
) -> None:
    with pytest.raises(DsctlError, match=said):
        run(template(), dataset_base_path=data(given, given), cache=False)


def test_a_list_of_inputs_works_together_in_a_row(template: Write, pipe: Any) -> None:
    training = module(pipe, template())
    one, both = (training(row(given=given)) for given in ({"scale": 0.2}, [{"scale": 0.2}, {"scale": 0.9}]))
    assert one.item() != both.item()


def test_a_forward_without_gradient_is_told_before_the_backward_pass(template: Write, pipe: Any) -> None:
    code = BRIGHTNESS.replace(
        "    def forward(self, value, **kwargs):", "    @torch.no_grad()\n    def forward(self, value, **kwargs):"
    )
    with pytest.raises(DsctlError, match="no output of forward depends on the trained weights"):
        module(pipe, template(code))(row())


def test_frozen_components_can_be_held_in_eight_bits(template: Write, data: Any, run: Any, tmp_path: Path) -> None:
    folder, source = template(), data()
    result = run(folder, dataset_base_path=source, cache=False, fp8_models=("dit", "text_encoder"), max_steps=2)
    assert {tensor.dtype for tensor in weights(result).values()} == {torch.float32}
    run(folder, "cache", first=True, dataset_base_path=source, fp8_models=("text_encoder",))
    run(folder, "second", from_cache=tmp_path / "cache", fp8_models=("dit",), max_steps=2)
    with pytest.raises(UsageError, match="template_model cannot be stored in float8"):
        run(folder, "no", dataset_base_path=source, fp8_models=("template_model",))


def test_bfloat16_trains_the_template_in_float32(template: Write, data: Any, run: Any) -> None:
    result = run(template(), dataset_base_path=data(), mixed_precision="bf16", max_steps=3)
    assert {tensor.dtype for tensor in weights(result).values()} == {torch.float32}


def test_options_without_a_template_are_refused(data: Any, run: Any, template: Write) -> None:
    with pytest.raises(UsageError, match="template_model is to be trained, but no template is given"):
        run(None, dataset_base_path=data(), extra_inputs=())
    with pytest.raises(UsageError, match="unknown extra input 'template_inputs'"):
        run(None, dataset_base_path=data(), trainable_models=("dit",))
    with pytest.raises(UsageError, match="--trust-template has no effect without --template"):
        run(None, dataset_base_path=data(), trust_template=True)
    with pytest.raises(UsageError, match="unknown module of template_model 'keyz'") as caught:
        run(template(), dataset_base_path=data(), trainable_models=("template_model.keyz",))
    assert "did you mean 'keys'?" in str(caught.value.hint)
    with pytest.raises(UsageError, match="template_model cannot get a LoRA"):
        run(template(), dataset_base_path=data(), trainable_models=None, lora_base_model="template_model", lora_rank=2)


def test_buffers_of_what_is_trained_are_in_the_file_and_come_back(template: Write, data: Any, run: Any) -> None:
    counter = 'self.heads = heads\n        self.register_buffer("seen", torch.zeros(()))'
    code = BRIGHTNESS.replace("self.heads = heads", counter)
    code = code.replace("        def shaped(", "        self.seen += 1\n\n        def shaped(")
    folder = template(code)
    result = run(folder, dataset_base_path=data(), max_steps=3)
    assert weights(result)["seen"] == 3
    assert _loaded(folder, result.checkpoint)["seen"] == 3
