"""Templates that break the contract: one line each, which says where and what."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from dsctl_core.checkpoint.model_config import ModelConfig
from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.template.model import Template, load_template
from dsctl_core.template.pipeline import TemplatePipeline
from dsctl_core.template.source import config_of, folder_of
from dsctl_core.template.trust import Trust, add_trusted_digest, trusted_file
from tests.templates import BRIGHTNESS, ENCODER

TRUSTED = Trust(granted=True)
Write = Callable[..., Path]


def opened(folder: Path, checkpoint: Path | None = None) -> Template:
    return load_template(ModelConfig(path=folder), TRUSTED, checkpoint=checkpoint)


def steered(folder: Path, pipe: Any, inputs: dict[str, Any] | None) -> Any:
    templates = TemplatePipeline.from_pretrained(
        torch_dtype=torch.float32, device="cpu", model_configs=[ModelConfig(path=folder)], trust_template=True
    )
    settings = {"prompt": "a", "height": 32, "width": 32, "num_inference_steps": 1, "cfg_scale": 1.0, "seed": 0}
    return templates(pipe, **settings, template_inputs=[inputs or {"scale": 0.5}])


def one_line(error: DsctlError) -> str:
    assert "\n" not in error.problem
    assert error.hint
    assert "\n" not in error.hint
    return error.problem


BROKEN = {
    "a syntax error": ("class Brightness(", "class Brightness((", r"model.py, line \d+: it cannot be run: SyntaxError"),
    "code that fails": ("import torch\n", "import torch\nNOPE\n", r"model.py, line 3: it cannot be run: NameError: "),
    "an exit": ("import torch\n", "raise SystemExit(3)\n", r"line 2: it cannot be run: it calls exit\(3\)"),
    "no TEMPLATE_MODEL": ("TEMPLATE_MODEL =", "MODEL =", "model.py defines no TEMPLATE_MODEL"),
    "no module": ("TEMPLATE_MODEL = Brightness", "TEMPLATE_MODEL = 3", "TEMPLATE_MODEL is 3, not a class of torch.nn"),
    "no process_inputs": ("def process_inputs", "def process", "Brightness has no process_inputs"),
    "no forward": ("def forward(self, value, **kwargs)", "def run(self, value, **kwargs)", "Brightness has no forward"),
    "no kwargs in forward": ("self, value, **kwargs", "self, value", r"forward of Brightness does not take \*\*kwargs"),
    "no kwargs in process_inputs": ("pipe, scale, **kwargs", "pipe, scale", r"process_inputs .* not take \*\*kwargs"),
    "a config that does not fit": (
        "TEMPLATE_MODEL_PATH = None",
        "TEMPLATE_MODEL_CONFIG = {'size': 3}",
        "TEMPLATE_MODEL cannot be made with its TEMPLATE_MODEL_CONFIG: TypeError",
    ),
    "a config that is none": ("TEMPLATE_MODEL_PATH = None", "TEMPLATE_MODEL_CONFIG = [3]", "MODEL_CONFIG is a list"),
    "a path that is none": ("TEMPLATE_MODEL_PATH = None", "TEMPLATE_MODEL_PATH = 3", "TEMPLATE_MODEL_PATH is 3"),
    "no weights file": ("_PATH = None", "_PATH = 'gone.safetensors'", "gone.safetensors is missing, but TEMPLATE_MODE"),
    "weights outside": ("_PATH = None", "_PATH = '../a.safetensors'", "outside the template's folder"),
    "a processor that is none": ("DataProcessor\n", "3\n", "TEMPLATE_DATA_PROCESSOR is 3"),
    "a processor that is not made": ("PROCESSOR = DataProcessor", "PROCESSOR = lambda: 1 / 0", "PROCESSOR cannot be m"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_template_that_cannot_be_opened(template: Write, kind: str) -> None:
    old, new, said = BROKEN[kind]
    assert old in BRIGHTNESS
    with pytest.raises(DsctlError, match=said) as caught:
        opened(template(BRIGHTNESS.replace(old, new)))
    one_line(caught.value)


RUNNING = {
    "no dict": ('return {"kv_cache": {', 'return [] and {"kv_cache": {', None, "forward returns a list, not a dict"),
    "a failure in forward": (
        "        def shaped(",
        "        1 / 0\n\n        def shaped(",
        None,
        r"line \d+: forward f",
    ),
    "a failure in process_inputs": ("dtype=pipe.torch_dtype", "dtype=pipe.nope", None, r"line \d+: process_inputs"),
    "a block of another model": ("double_{i}", "single_{i}", None, r"'single_0', which this model does not have"),
    "a shape of another model": ("width=16", "width=8", None, r"double_0 .*\(1, 3, 2, 8\).*\(1, tokens, 2, 16\)"),
    "values that are not finite": ("(shaped(self.keys[n](value))", "(shaped(self.keys[n](value) / 0)", None, "finite"),
    "a name that nothing reads": ('"kv_cache": {', '"kv_cash": {', None, "'kv_cash', which .* does not read"),
    "an input that is missing": ("", "", {"scal": 1}, "needs the input 'scale', but its inputs are 'scal'"),
    "a reserved input": ("", "", {"scale": 1, "pipe": 2}, "has the name 'pipe', which is reserved"),
    "a reserved output": (
        'return {"value":',
        'return {"pipe": 1, "value":',
        None,
        "process_inputs has the name 'pipe'",
    ),
}


@pytest.mark.parametrize("kind", RUNNING)
def test_a_template_that_does_not_run(template: Write, pipe: Any, kind: str) -> None:
    old, new, inputs, said = RUNNING[kind]
    code = BRIGHTNESS.replace(old, new) if old else BRIGHTNESS
    assert code != BRIGHTNESS or inputs
    with pytest.raises(DsctlError, match=said) as caught:
        steered(template(code), pipe, inputs)
    one_line(caught.value)


def test_process_inputs_may_not_use_what_is_trained(template: Write, pipe: Any) -> None:
    encoded = opened(template(ENCODER))
    inputs = {"colour": [0.1, 0.2, 0.3, 0.4]}
    encoded.process_inputs(pipe, inputs)
    encoded.model.mlp.requires_grad_(True)
    encoded.process_inputs(pipe, inputs)
    encoded.model.encoder.requires_grad_(True)
    with pytest.raises(DsctlError, match="process_inputs uses encoder.bias, which is trained") as caught:
        encoded.process_inputs(pipe, inputs)
    assert "--trainable-models template_model.mlp" in str(caught.value.hint)


def test_process_inputs_may_not_return_gradients(template: Write, pipe: Any) -> None:
    code = BRIGHTNESS.replace('return {"value": ', 'return {"value": torch.ones(1, requires_grad=True) * ')
    code = code.replace("    @torch.no_grad()\n", "    @torch.enable_grad()\n")
    with pytest.raises(DsctlError, match="process_inputs returns 'value' with a gradient"):
        opened(template(code)).process_inputs(pipe, {"scale": 0.5})


def test_model_id_and_reserved_inputs_never_mix_with_a_templates_own(template: Write, pipe: Any) -> None:
    code = BRIGHTNESS.replace("pipe, scale, **kwargs", "pipe, scale, **kwargs").replace(
        'return {"value":', 'assert not kwargs, kwargs\n        return {"value":'
    )
    code = code.replace("        def shaped", "        assert set(kwargs) == EXTRA, kwargs\n        def shaped")
    code += '\nEXTRA = {"pipe", "use_gradient_checkpointing", "use_gradient_checkpointing_offload"}\n'
    made = opened(template(code))
    state = made.process_inputs(pipe, {"scale": 0.5, "model_id": 0})
    assert set(made.forward(pipe, state, use_gradient_checkpointing=True)) == {"kv_cache"}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() + 1 for name, tensor in opened(folder).model.state_dict().items()}


@pytest.mark.parametrize("files", [1, 3])
def test_weights_are_read_from_one_file_or_several(template: Write, files: int) -> None:
    state = weights(template())
    names = [f"w-{number}.safetensors" for number in range(files)]
    folder = template(TEMPLATE_MODEL_PATH=f"TEMPLATE_MODEL_PATH = {names if files > 1 else names[0]!r}\nUNUSED")
    for number, name in enumerate(names):
        save_file(dict(list(state.items())[number::files]), folder / name)
    read = opened(folder).model.state_dict()
    assert read.keys() == state.keys() != set()
    for name, tensor in read.items():
        assert torch.equal(tensor, state[name])


@pytest.mark.parametrize("change", ["missing", "extra", "shape", "twice", "pickle", "cut"])
def test_weights_that_do_not_fit_are_refused(template: Write, change: str) -> None:
    state = weights(template())
    file = "w.bin" if change == "pickle" else "w.safetensors"
    names = [file, "v.safetensors"] if change == "twice" else file
    folder = template(TEMPLATE_MODEL_PATH=f"TEMPLATE_MODEL_PATH = {names!r}\nUNUSED")
    first = next(iter(state))
    changed = dict(state)
    if change == "missing":
        del changed[first]
    if change == "extra":
        changed["other"] = torch.zeros(1)
    if change == "shape":
        changed[first] = torch.zeros(7)
    torch.save(changed, folder / file) if change == "pickle" else save_file(changed, folder / file)
    if change == "twice":
        save_file({first: state[first]}, folder / "v.safetensors")
    if change == "cut":
        (folder / file).write_bytes((folder / file).read_bytes()[:-10])
    said = {
        "missing": f"{first} is missing",
        "extra": "other is not in the network",
        "shape": rf"{first} has the shape \(7,\), but",
        "twice": f"v.safetensors has {first}, which an earlier file has too",
        "pickle": "is a pickle",
        "cut": "is damaged",
    }[change]
    with pytest.raises(DsctlError, match=said) as caught:
        opened(folder)
    one_line(caught.value)


def test_a_checkpoint_wins_over_the_templates_own_weights(template: Write, tmp_path: Path) -> None:
    state = weights(template())
    folder = template(TEMPLATE_MODEL_PATH="TEMPLATE_MODEL_PATH = 'w.safetensors'\nUNUSED")
    save_file(state, folder / "w.safetensors")
    first = next(iter(state))
    save_file({first: state[first] + 5}, tmp_path / "trained.safetensors")
    made = opened(folder, tmp_path / "trained.safetensors").model.state_dict()
    assert torch.equal(made[first], state[first] + 5)
    assert all(torch.equal(made[name], state[name]) for name in state if name != first)


def test_a_checkpoint_must_be_whole_where_the_template_has_no_weights(template: Write, tmp_path: Path) -> None:
    folder = template(ENCODER)
    state = weights(folder)
    part = {name: tensor for name, tensor in state.items() if name.startswith("mlp.")}
    save_file(part, tmp_path / "part.safetensors")
    with pytest.raises(DsctlError, match="encoder.bias is missing"):
        opened(folder, tmp_path / "part.safetensors")
    # A file that says that only this part was trained: the rest is what the template's code makes.
    save_file(part, tmp_path / "part.safetensors", metadata={"trained_parts": "mlp"})
    made = opened(folder, tmp_path / "part.safetensors").model.state_dict()
    assert torch.equal(made["mlp.bias"], state["mlp.bias"])
    torch.testing.assert_close(made["encoder.bias"], state["encoder.bias"] - 1)


def test_a_template_that_starts_at_random_starts_the_same_every_time(template: Write) -> None:
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    one, other = (opened(template()).model.state_dict() for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_code_runs_only_when_someone_has_agreed(template: Write, tmp_path: Path) -> None:
    folder = template(BRIGHTNESS + f"\nopen({str(tmp_path / 'ran')!r}, 'w').close()\n")
    with pytest.raises(UsageError, match=r"model.py is code that is not trusted \(sha256 \w{64}\)") as no:
        load_template(ModelConfig(path=folder), Trust())
    assert "--trust-template" in str(no.value.hint)
    with pytest.raises(UsageError, match="is not trusted"):
        TemplatePipeline.from_pretrained(model_configs=[ModelConfig(path=folder)])
    assert not (tmp_path / "ran").exists()
    digest = str(no.value.problem).split("sha256 ")[1][:64]
    add_trusted_digest(digest)
    assert trusted_file().is_relative_to(tmp_path)
    load_template(ModelConfig(path=folder), Trust())
    assert (tmp_path / "ran").exists()
    (folder / "model.py").write_text(BRIGHTNESS + "\n# changed\n")
    with pytest.raises(UsageError, match="is not trusted"):
        load_template(ModelConfig(path=folder), Trust())


def test_a_template_is_a_folder_or_a_repository(template: Write, tmp_path: Path, monkeypatch: Any) -> None:
    folder = template()
    assert folder_of(config_of(str(folder))) == folder
    for text, said in (
        ("gone", "the template gone does not exist"),
        ("./a/b:", "does not exist"),
        ("a/b", "not exist"),
    ):
        with pytest.raises(DsctlError, match=said):
            config_of(text)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DsctlError, match="empty is not a template: it has no model.py"):
        folder_of(config_of(str(tmp_path / "empty")))
    with pytest.raises(DsctlError, match="model.py is not the folder of a template"):
        folder_of(config_of(str(folder / "model.py")))
    monkeypatch.setenv("DSCTL_MODEL_BASE_PATH", str(tmp_path / "models"))
    for text, where in (
        ("owner/name:", "owner/name"),
        ("owner/name@v1:", "owner/name@v1"),
        ("owner/x@v2", "owner/x@v2"),
    ):
        with pytest.raises(DsctlError, match="is not in"):
            folder_of(config_of(text))
        here = template(name=f"models/{where}")
        assert folder_of(config_of(text)) == here
