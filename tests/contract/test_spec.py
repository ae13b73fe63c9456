"""DiffSynth's snippets run with other imports, and its commands with their own flags, on tiny models under the names
of the published ones. What cannot be as it is there is in docs/guides/porting.md.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import io
import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import dsctl_core
from dsctl.app import main
from dsctl_core import ModelConfig, PipelineUnit, QwenImagePipeline, gradient_checkpoint_forward
from dsctl_core.commands.trust import trust_code, unconfirmed_code
from dsctl_core.options.template import TemplateSource
from dsctl_core.template import load_template
from tests.contract import spec_snippets as spec
from tests.templates import BRIGHTNESS, write_template
from tests.tiny_models import write_tiny_flux2, write_tiny_qwen_image

# The tiny FLUX.2: one double block and two single ones, two heads of 16.
KLEIN_BRIGHTNESS = BRIGHTNESS.replace("blocks=2", "blocks=1")
PUBLIC = {name: getattr(dsctl_core, name) for name in dsctl_core.__all__}


def split_weights(folder: Path, stem: str, count: int) -> None:
    """Write the one weight file of `folder` as `count` shards with their index, as large models are published."""
    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    file.unlink()
    names = sorted(tensors)
    weight_map = {}
    for number in range(count):
        shard = f"{stem}-{number + 1:05}-of-{count:05}.safetensors"
        own = {name: tensors[name] for name in names[number::count]}
        save_file(own, folder / shard, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(own, shard)
    size = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def write_pictures(folder: Path, **more: Any) -> None:
    """Write a dataset of two pictures: with columns `more` as jsonl, else as csv."""
    folder.mkdir(parents=True)
    for number, colour in ((1, "red"), (2, "gray")):
        Image.new("RGB", (64, 64), colour).save(folder / f"image_{number}.jpg")
    rows = [("image_1.jpg", "a dog"), ("image_2.jpg", "a cat")]
    if more:
        lines = [json.dumps({"image": image, "prompt": prompt, **more}) for image, prompt in rows]
    else:
        lines = ["image,prompt", *(f'{image},"{prompt}"' for image, prompt in rows)]
    (folder / f"metadata.{'jsonl' if more else 'csv'}").write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to work in, with tiny models in ./models under the published names, datasets, and two templates."""
    root = tmp_path_factory.mktemp("spec")
    qwen = write_tiny_qwen_image(root / "models/Qwen/Qwen-Image")
    split_weights(qwen / "transformer", "diffusion_pytorch_model", 9)
    split_weights(qwen / "text_encoder", "model", 4)
    klein = write_tiny_flux2(root / "models/black-forest-labs/FLUX.2-klein-4B")
    shutil.copytree(klein, klein.with_name("FLUX.2-klein-base-4B"))
    write_pictures(root / "data/example_image_dataset")
    write_pictures(root / spec.KLEIN_DATA, template_inputs={"scale": 0.2})
    write_template(root / "examples/flux2/model_training/scripts/brightness", KLEIN_BRIGHTNESS)
    published = write_template(root / "models/DiffSynth-Studio/Template-KleinBase4B-Brightness", KLEIN_BRIGHTNESS)
    model = load_template(ModelConfig(published), Trusted()).model
    save_file(model.state_dict(), published / "model.safetensors")
    weights = ("TEMPLATE_MODEL_PATH = None", 'TEMPLATE_MODEL_PATH = "model.safetensors"')
    (published / "model.py").write_text(KLEIN_BRIGHTNESS.replace(*weights), encoding="utf-8")
    return root


def Trusted() -> Any:
    from dsctl_core.template.trust import Trust

    return Trust(granted=True)


@pytest.fixture
def here(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in `root`, as a person who said yes to the code of its templates."""
    monkeypatch.chdir(root)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    found = sorted(root.rglob("model.py"))
    assert len(found) >= 2
    for file in found:
        for code in unconfirmed_code([TemplateSource(str(file.parent))]):
            trust_code(code)
    return root


def ran(snippet: str, **names: Any) -> dict[str, Any]:
    """Run a snippet with the public names of dsctl_core and `names`, and return what it defines."""
    defined = {"torch": torch, "Image": Image, "np": np, **PUBLIC, **pipelines(), **names}
    exec(compile(snippet, "snippet", "exec"), defined)
    return defined


def pipelines() -> dict[str, Any]:
    return {name: getattr(dsctl_core, name) for name in ("QwenImagePipeline", "Flux2ImagePipeline")}


def command(text: str, *more: str) -> list[str]:
    """Return a command of accelerate with a training script as words of ours; 50 repeats become one."""
    words = shlex.split(text)
    script = next(number for number, word in enumerate(words) if word.endswith("/train.py"))
    assert words[:2] == ["accelerate", "launch"]
    flags = ["1" if word == "50" else word for word in words[script + 1 :]]
    return ["train", *flags, *more, "--device", "cpu"]


@functools.cache
def train_help() -> str:
    """Return what `dsctl train --help` shows."""
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        assert main(["train", "--help"]) == 0
    return shown.getvalue()


def test_the_names_of_the_documentation_are_public() -> None:
    assert {"Flux2ImagePipeline", "QwenImagePipeline"} == set(pipelines())
    assert {"load_template_model", "load_state_dict", "PipelineUnit", "TemplatePipeline"} <= set(PUBLIC)
    assert dsctl_core.Flux2ImagePipeline is dsctl_core.Flux2Pipeline


def qwen_image(**more: Any) -> Any:
    root = Path("models/Qwen/Qwen-Image")
    return QwenImagePipeline.from_pretrained(
        model_configs=[ModelConfig(root)], device="cpu", torch_dtype=torch.float32, **more
    )


@pytest.mark.parametrize("training", [False, True])
def test_the_unit_with_a_constructor_of_declarations_encodes_as_our_own(here: Path, training: bool) -> None:
    Unit = ran(spec.UNIT)["QwenImageUnit_InputImageEmbedder"]
    pipe, unit = qwen_image(), Unit()
    assert isinstance(unit, PipelineUnit)
    assert unit.input_params == ("input_image", "noise", "tiled", "tile_size", "tile_stride")
    assert (unit.output_params, unit.onload_model_names) == (("latents", "input_latents"), ("vae",))
    pipe.scheduler.set_timesteps(10, 0.5, training=training)
    with Image.open("data/example_image_dataset/image_1.jpg") as opened:
        picture = opened.convert("RGB")
    shared = {"input_image": picture, "height": 64, "width": 64, "seed": 1, "cfg_scale": 1}
    posi, nega = {"prompt": "a dog"}, {"negative_prompt": ""}
    wanted, _, _ = pipe.run_units(shared, posi, nega)
    kept = [each for each in pipe.units if type(each).__name__ not in ("InputImageEmbedder", "LatentsInitializer")]
    pipe.units = [*kept[:2], unit, *kept[2:]]
    found, _, _ = pipe.run_units(shared, posi, nega)
    for name in ("latents", "input_latents"):
        torch.testing.assert_close(found[name], wanted[name], rtol=0, atol=0)
    assert torch.equal(found["latents"], found["noise"]) == training
    without, _, _ = pipe.run_units({**shared, "input_image": None}, posi, nega)
    assert without["input_latents"] is None and torch.equal(without["latents"], without["noise"])


def test_a_checkpointed_block_returns_what_the_block_returns() -> None:
    def block(image: Any, text: Any, temb: Any, image_rotary_emb: Any, attention_mask: Any) -> tuple[Any, Any]:
        return text * temb, image * temb

    names = dict.fromkeys(("image_rotary_emb", "attention_mask"))
    image, text, conditioning = (torch.randn(3, requires_grad=True) for _ in range(3))
    for on in (False, True):
        flags = {"use_gradient_checkpointing": on, "use_gradient_checkpointing_offload": False}
        given = {"image": image, "text": text, "conditioning": conditioning, "block": block, **names, **flags}
        done = ran(spec.CHECKPOINTED_BLOCK, gradient_checkpoint_forward=gradient_checkpoint_forward, **given)
        assert torch.equal(done["text"], text * conditioning) and torch.equal(done["image"], image * conditioning)


def test_the_training_script_trains_a_lora(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = spec.TRAINING_SCRIPT.replace("repeat=50", "repeat=1").replace("512", "64")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    ran(spec.TRAINING_MODULE + script, accelerate=accelerate, __name__="__main__")
    (file,) = Path("models/toy_model").glob("step-*.safetensors")
    assert file.name == "step-2.safetensors" and any("lora_A" in name for name in load_file(file))


def test_lists_of_shards_are_one_model(here: Path) -> None:
    (statement,) = ast.parse(spec.MODEL_CONFIGS).body
    assert isinstance(statement, ast.Assign)
    configs = ran(spec.MODEL_CONFIGS)["model_configs"]
    pipe = QwenImagePipeline.from_pretrained(model_configs=configs, device="cpu")
    assert set(pipe.components) == {"dit", "text_encoder", "vae"}
    assert len(configs[0].resolve()) == 9


def test_the_template_skeleton_is_a_template(here: Path, tmp_path: Path) -> None:
    folder = write_template(tmp_path / "skeleton", spec.TEMPLATE_SKELETON)
    save_file({}, folder / "model.safetensors")
    template = load_template(ModelConfig(folder), Trusted())
    inputs = template.annotate({"www": 3})
    state = template.process_inputs(qwen_image(only=()), inputs)
    assert (inputs, state) == ({"xxx": 3}, {"yyy": 3})
    assert template.forward(qwen_image(only=()), state) == {"zzz": 3}


def test_a_template_may_have_several_weight_files_and_any_data_processor(here: Path, tmp_path: Path) -> None:
    plain = load_template(ModelConfig(write_template(tmp_path / "plain")), Trusted()).model.state_dict()
    code = "import numpy as np\nfrom PIL import Image\n" + BRIGHTNESS
    code += spec.TEMPLATE_SHARDS + spec.DATA_PROCESSOR_OF_AN_IMAGE
    folder = write_template(tmp_path / "shards", code)
    names = sorted(plain)
    for number in range(3):
        shard = {name: plain[name] + 1 for name in names[number::3]}
        save_file(shard, folder / f"model-{number + 1:05}-of-00003.safetensors")
    template = load_template(ModelConfig(folder), Trusted())
    assert all(torch.equal(tensor, plain[name] + 1) for name, tensor in template.model.state_dict().items())
    gray = template.annotate({"image": str(here / "data/example_image_dataset/image_2.jpg")})
    assert gray["scale"] == pytest.approx(128 / 255, abs=0.01)
    one = load_template(ModelConfig(write_template(tmp_path / "one", BRIGHTNESS + spec.DATA_PROCESSOR)), Trusted())
    assert one.annotate({"scale": 0.6}) == {"scale": 0.6}


class Head(torch.nn.Module):
    """Makes keys and values of an embedding (1, T, D)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(width, 64)

    def forward(self, x: torch.Tensor) -> dict[str, Any]:
        key, value = self.linear(x).view(1, -1, 2, 2, 16).unbind(2)
        return {"double_0": (key, value)}


class Encoder(torch.nn.Module):
    """Makes an embedding (1, 1, 32) of a number."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(1, 32)

    @classmethod
    def from_pretrained(cls, path: str) -> Encoder:
        return cls()

    def forward(self, value: float) -> torch.Tensor:
        return self.linear(torch.full((1, 1, 1), value))


def template_of(snippet: str, folder: Path) -> Any:
    head = "import torch\nfrom tests.contract.test_spec import Encoder as XXXEncoder, Head as MLP\nxxx = MLP\n"
    return load_template(ModelConfig(write_template(folder, head + snippet)), Trusted())


def test_a_template_may_have_an_encoder_of_its_own(here: Path, tmp_path: Path) -> None:
    template, pipe = template_of(spec.TEMPLATE_WITH_AN_ENCODER, tmp_path / "encoder"), qwen_image(only=())
    outputs = template.forward(pipe, template.process_inputs(pipe, {"image": 0.5}))
    assert outputs["kv_cache"]["double_0"][0].shape == (1, 1, 2, 16)


def test_a_template_may_call_the_text_encoder(here: Path, tmp_path: Path) -> None:
    # Our text encoder is that of transformers: it takes tensors by name, and returns an object.
    snippet = spec.TEMPLATE_WITH_THE_TEXT_ENCODER.replace(
        "pipe.tokenizer(text)", 'pipe.tokenizer(text, return_tensors="pt")'
    ).replace(
        "pipe.text_encoder(input_ids)", "pipe.text_encoder(**input_ids, output_hidden_states=True).hidden_states[-1]"
    )
    template, pipe = template_of(snippet, tmp_path / "text"), qwen_image()
    outputs = template.forward(pipe, template.process_inputs(pipe, {"text": "a cat"}))
    assert outputs["kv_cache"]["double_0"][0].shape[1] > 1


def test_packing_keeps_the_trained_weights(here: Path, tmp_path: Path) -> None:
    folder = here / "models/DiffSynth-Studio/Template-KleinBase4B-Brightness"
    trained = {name: tensor + 1 for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(trained, tmp_path / "epoch-1.safetensors")
    snippet = spec.PACKING.replace("path/to/your/template/model", str(folder))
    snippet = snippet.replace("path/to/your/ckpt/epoch-1.safetensors", str(tmp_path / "epoch-1.safetensors"))
    # As it is written there, fresh weights overwrite the trained ones: the one line that must be another.
    fixed = snippet.replace("state_dict.update(model.state_dict())", "state_dict = model.state_dict() | state_dict")
    assert fixed != snippet
    ran(fixed.replace("model.safetensors", str(tmp_path / "model.safetensors")), save_file=save_file)
    packed = load_file(tmp_path / "model.safetensors")
    assert set(packed) == set(trained)
    assert all(torch.equal(packed[name], tensor.bfloat16()) for name, tensor in trained.items())


def test_the_inference_of_a_template_draws_a_picture(here: Path, tmp_path: Path) -> None:
    snippet = (
        spec.TEMPLATE_INFERENCE.replace('"cuda"', '"cpu"').replace("1024", "64").replace("{xxx}", '{"scale": 0.7}')
    )
    snippet = snippet.replace("seed=0, ", "seed=0, num_inference_steps=2, ")
    snippet = snippet.replace("user_name/your_model_id", "DiffSynth-Studio/Template-KleinBase4B-Brightness")
    done = ran(snippet.replace("image.png", str(tmp_path / "image.png")))
    with Image.open(tmp_path / "image.png") as picture:
        assert picture.size == (64, 64)
    pipe = done["pipe"]
    plain = pipe(prompt="a cat", seed=0, num_inference_steps=2, cfg_scale=4, height=64, width=64)
    assert np.asarray(plain).tobytes() != np.asarray(done["image"]).tobytes()


def test_the_full_training_runs(here: Path) -> None:
    assert main(command(spec.FULL_TRAINING)) == 0
    (file,) = Path("models/train/Qwen-Image_full").glob("step-4.safetensors")
    assert "proj_out.weight" in load_file(file)


def test_a_template_trains_in_one_stage(here: Path) -> None:
    assert main(command(spec.TEMPLATE_TRAINING)) == 0
    trained = load_file("models/train/Template-KleinBase4B-Brightness_example/step-4.safetensors")
    assert "keys.double_0.position" in trained


def test_a_template_trains_in_two_stages_with_fp8(here: Path) -> None:
    assert main(command(spec.TEMPLATE_FIRST_STAGE, *shlex.split(spec.FP8_OF_THE_FIRST_STAGE))) == 0
    assert main(command(spec.TEMPLATE_SECOND_STAGE, *shlex.split(spec.FP8_OF_THE_SECOND_STAGE))) == 0
    assert load_file("models/train/Template-KleinBase4B-Brightness_full/step-4.safetensors")


def test_the_flags_that_are_described_one_by_one_are_taken() -> None:
    names = spec.PARAMETERS.split()
    assert {"template_model_id_or_path", "task", "fp8_models"} <= set(names)
    flags = [f"--{name}".replace("_", "-") for name in names]
    assert [flag for flag in flags if flag not in train_help()] == []


@pytest.mark.parametrize("flags", spec.TRAINED)
def test_what_is_trained_is_chosen_with_the_same_flags(here: Path, tmp_path: Path, flags: str) -> None:
    words = ["train", "--model", "models/Qwen/Qwen-Image", "--dataset_base_path", "data/example_image_dataset"]
    words += ["--max-steps", "1", "--device", "cpu", "--output_path", str(tmp_path / "out"), *shlex.split(flags)]
    assert main(words) == 0
    assert list((tmp_path / "out").glob("step-1*.safetensors"))


def test_model_paths_are_json(here: Path, tmp_path: Path) -> None:
    paths = json.dumps([spec.SHARDS_OF_THE_DIT, spec.SHARDS_OF_THE_TEXT_ENCODER, spec.VAE_FILE])
    words = ["train", "--model_paths", paths, "--dataset_base_path", "data/example_image_dataset", "--lora_rank", "2"]
    assert main([*words, "--max-steps", "1", "--device", "cpu", "--output_path", str(tmp_path / "out")]) == 0


@pytest.mark.parametrize("text", spec.DOWNLOADS)
def test_downloads_take_the_same_words(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def download(options: Any, *_: Any, **__: Any) -> Any:
        asked.append(options)
        raise dsctl_core.DsctlError("far enough")

    monkeypatch.setattr("dsctl_core.commands.download.download", download)
    main(shlex.split(text)[1:])
    (options,) = asked
    assert options.dataset and options.what[0].startswith("DiffSynth-Studio/") and options.local_dir is not None
