"""Which weights `trainable_models` and `lora_base_model` mean, that they learn, and that each gets its file."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from dsctl.app import main
from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.lora.layers import trained_layers
from dsctl_core.training.model.task_module import TaskModule
from tests.dsctl_core.training.conftest import picture

ROWS = [{"image": picture(seed=1), "prompt": "a red one", "seed": 3}]
ENCODERS = {"text_encoder": "PromptEmbedder", "vae": "InputImageEmbedder"}


def step(pipe, **what):
    """Train for one large step and return the module, and the names of the weights that moved."""
    module = TaskModule(pipe, "sft", **what)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    optimizer = torch.optim.SGD(module.trainable_modules(), lr=1.0)
    module(ROWS).backward()
    optimizer.step()
    return module, {name for name, p in module.named_parameters() if not torch.equal(p, before[name])}


@pytest.mark.parametrize(
    ("what", "moved"),
    [
        ({"trainable_models": "dit"}, {"pipe.dit."}),
        ({"trainable_models": "text_encoder"}, {"pipe.text_encoder."}),
        ({"trainable_models": "vae"}, {"pipe.vae."}),
        ({"trainable_models": "dit,text_encoder,vae"}, {"pipe.dit.", "pipe.text_encoder.", "pipe.vae."}),
        ({"trainable_models": "dit.transformer_blocks.0"}, {"pipe.dit.transformer_blocks.0."}),
        (
            {"trainable_models": "dit.proj_out,dit.transformer_blocks.*.attn"},
            {"pipe.dit.proj_out.", "pipe.dit.transformer_blocks.0.attn.", "pipe.dit.transformer_blocks.1.attn."},
        ),
        (
            {"trainable_models": "text_encoder", "lora_base_model": "dit"},
            {"pipe.text_encoder.", "pipe.dit.transformer_blocks."},
        ),
        (
            {"trainable_models": "dit.proj_out,vae.encoder", "lora_base_model": "text_encoder"},
            {"pipe.dit.proj_out.", "pipe.vae.encoder.", "pipe.text_encoder.model.language_model.layers."},
        ),
    ],
)
def test_what_is_named_moves_and_nothing_else(load_pipe, what, moved):
    module, names = step(load_pipe(), **what)
    assert {prefix for prefix in moved if any(name.startswith(prefix) for name in names)} == moved
    assert not [name for name in names if not name.startswith(tuple(moved))]
    assert names <= {name for name, _ in module.trainable_parameters()}
    lora = {name for name in names if what.get("lora_base_model", "none") in name.split(".")}
    assert all(".lora_" in name for name in lora)
    trained = {name.split(".")[0] for name in what.get("trainable_models", "").split(",")}
    every_step = {type(unit).__name__ for unit in module.stages.split.every_step}
    for component, unit in ENCODERS.items():
        assert (unit in every_step) == (component in trained | {what.get("lora_base_model")})


@pytest.mark.parametrize("component", ["text_encoder", "vae"])
def test_a_trained_encoder_gets_the_gradient_that_a_small_change_of_it_shows(load_pipe, component):
    pipe = load_pipe(torch_dtype=torch.float64)
    pipe.torch_dtype = torch.float32
    part = {"text_encoder": "model.language_model.layers.0.mlp.down_proj.weight", "vae": "encoder.conv_in.weight"}
    module = TaskModule(pipe, "sft", trainable_models=component)
    weight = pipe.component(component).get_parameter(part[component])
    loss = module(ROWS)
    loss.backward()
    slope, direction = weight.grad.norm(), weight.grad / weight.grad.norm()
    assert slope > 0
    with torch.no_grad():
        weight.add_(direction, alpha=1e-2)
        higher = module(ROWS)
        weight.add_(direction, alpha=-2e-2)
        lower = module(ROWS)
    assert abs(float((higher - lower) / 2e-2 / slope) - 1) < 0.1


def test_a_part_of_a_component_is_held_in_float32_and_the_rest_is_not(load_pipe):
    pipe = load_pipe(torch_dtype=torch.bfloat16, component_dtypes={"dit": torch.float32})
    exact = pipe.dit.proj_out.weight.clone()
    TaskModule(pipe, "sft", trainable_models="dit.proj_out")
    assert torch.equal(pipe.dit.proj_out.weight, exact)
    assert {p.dtype for p in pipe.dit.transformer_blocks.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("what", "problem", "hint"),
    [
        ({"trainable_models": "dti"}, "unknown component of qwen-image 'dti'", "dit"),
        ({"trainable_models": "dit,text_encodr"}, "unknown component of qwen-image 'text_encodr'", "text_encoder"),
        ({"trainable_models": "dit.proj_uot"}, "unknown module of dit 'proj_uot'", "proj_out"),
        ({"trainable_models": "dit.transformer_blocks.9"}, "transformer_blocks.9", "transformer_blocks"),
        ({"trainable_models": "dit.pos_embed"}, "dit.pos_embed has nothing to train", "weights"),
        ({"lora_base_model": "dti"}, "unknown component of qwen-image 'dti'", "dit"),
        ({"lora_base_model": "dit", "lora_target_modules": "to_q,to_qq"}, "'to_qq' matches no linear layer", "to_q"),
        ({"lora_base_model": "dit", "trainable_models": "dit.proj_out"}, "cannot be trained whole and get", "choose"),
        ({"lora_base_model": "dit", "use_dora": True, "fp8_models": "dit"}, "cannot be stored in float8", "--use-dora"),
    ],
)
def test_a_name_that_means_nothing_is_an_error_with_the_near_miss(load_pipe, what, problem, hint):
    with pytest.raises(DsctlError) as caught:
        TaskModule(load_pipe(), "sft", **what)
    assert problem in caught.value.problem and hint in (caught.value.hint or "")


def test_dropout_is_the_samples_own_and_the_same_when_recomputed(load_pipe):
    def gradients(rows, **more):
        module = TaskModule(load_pipe(), "sft", lora_base_model="dit", lora_dropout=0.3, **more)
        for layer in trained_layers(module.pipe.dit).values():
            torch.nn.init.normal_(layer.up, std=0.1, generator=torch.Generator().manual_seed(1))
        loss = module(rows)
        loss.backward()
        return loss.detach(), [p.grad for p in module.trainable_modules() if p.grad is not None]

    other = {"image": picture(seed=2), "prompt": "two blue ones on a table", "seed": 9}
    (loss, plain), (_, again) = gradients(ROWS), gradients(ROWS, use_gradient_checkpointing=True)
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))
    (second, _), (both, _) = gradients([other]), gradients([*ROWS, other])
    torch.testing.assert_close(both, (loss + second) / 2, atol=1e-5, rtol=1e-5)
    (without, _) = gradients(ROWS, lora_alpha=1e-9)
    assert abs(float(loss - without)) > 1e-4


@pytest.fixture
def data():
    Path("data").mkdir()
    for name in ("red", "blue"):
        Image.new("RGB", (32, 32), name).save(f"data/{name}.png")
    Path("data/metadata.csv").write_text("image,prompt\nred.png,red\nblue.png,blue\n", encoding="utf-8")
    return "data"


def train(capsys, model, data, *more, output="out"):
    words = ("train", "sft", "--model", model, "--dataset-base-path", data, "--max-steps", "3")
    settings = ("--learning-rate", "1e-2", "--device", "cpu", "--output-path", output, "--json")
    assert main([str(word) for word in (*words, *settings, *more)]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def test_several_trained_components_get_a_file_each(capsys, tiny_folder, data):
    from safetensors.torch import load_file

    more = ("--trainable-models", "dit.proj_out,dit.txt_norm,vae.encoder.conv_in", "--lora-base-model", "text_encoder")
    train(capsys, tiny_folder, data, *more)
    names = {path.name for path in Path("out").glob("step-3*")}
    assert names == {"step-3.dit.safetensors", "step-3.vae.safetensors", "step-3.text_encoder.safetensors"}
    assert set(load_file("out/step-3.dit.safetensors")) == {"proj_out.weight", "proj_out.bias", "txt_norm.weight"}
    assert set(load_file("out/step-3.vae.safetensors")) == {"encoder.conv_in.weight", "encoder.conv_in.bias"}
    lora = load_file("out/step-3.text_encoder.safetensors")
    assert lora and all(key.startswith("text_encoder.") and ".lora_" in key for key in lora)
    assert (Path("out") / "cache").exists() is False, "both encoders are trained, so nothing can be encoded once"


def test_training_the_text_encoder_from_the_cache_equals_training_it_without(capsys, tiny_folder, data):
    """Its unit runs at every step, the VAE's once: the losses are the same with and without the cache."""
    more = ("--trainable-models", "text_encoder", "--lora-rank", "2")
    losses = []
    for output, cache in (("kept", ()), ("anew", ("--no-cache",))):
        train(capsys, tiny_folder, data, *more, *cache, output=output)
        lines = Path(output, "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        losses.append([json.loads(line)["loss"] for line in lines])
    assert losses[0] == losses[1]
    assert Path("kept/cache").is_dir() and not Path("anew/cache").exists()


@pytest.mark.parametrize("form", ["diffusers", "peft"])
def test_a_dora_trains_on_from_its_file_and_serves_every_command(capsys, tiny_folder, data, form):
    more = ("--lora-rank", "2", "--use-dora", "--lora-format", form)
    first = train(capsys, tiny_folder, data, *more)["checkpoint"]
    second = train(capsys, tiny_folder, data, *more, "--lora-checkpoint", first, output="on")["checkpoint"]
    assert main(["lora", "info", second, "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert about["dora"] is True and about["metadata"]["use_dora"] == "true"
    for words in (
        ("merge-lora", "--model", tiny_folder, "--lora", f"{second}:0.7", "--output", "merged"),
        ("infer", "--model", "merged", "--prompt", "red", "--output", "a.png"),
        ("infer", "--model", tiny_folder, "--lora", f"{second}:0.7", "--prompt", "red", "--output", "b.png"),
    ):
        size = ("--height", "32", "--width", "32", "--num-inference-steps", "2") if words[0] == "infer" else ()
        assert main([str(word) for word in (*words, *size)]) == 0, capsys.readouterr().err
    capsys.readouterr()
    a, b = (torch.frombuffer(bytearray(Image.open(f"{n}.png").tobytes()), dtype=torch.uint8).int() for n in "ab")
    assert (a - b).abs().max() <= 1


def test_a_preset_lora_is_part_of_the_base_whose_difference_is_learned(capsys, tiny_folder, data):
    preset = train(capsys, tiny_folder, data, "--lora-rank", "2")["checkpoint"]
    more = ("--lora-rank", "2", "--preset-lora-path", preset, "--preset-lora-model", "dit")
    train(capsys, tiny_folder, data, *more, output="beyond")
    assert main(["merge-lora", "--model", str(tiny_folder), "--lora", preset, "--output", "merged"]) == 0
    capsys.readouterr()
    train(capsys, "./merged", data, "--lora-rank", "2", output="on_merged")
    read = [Path(out, "metrics.jsonl").read_text(encoding="utf-8").splitlines() for out in ("beyond", "on_merged")]
    for one, other in zip(*read, strict=True):
        assert json.loads(one)["loss"] == pytest.approx(json.loads(other)["loss"], rel=1e-5)


def test_a_lora_of_another_model_is_refused_as_a_start(capsys, tiny_folder, data):
    layer = "diffusion_model.other_blocks.0.to_q"
    from safetensors.torch import save_file

    save_file(
        {f"{layer}.lora_A.weight": torch.ones(2, 4), f"{layer}.lora_B.weight": torch.ones(4, 2)}, "other.safetensors"
    )
    words = ("train", "sft", "--model", tiny_folder, "--dataset-base-path", data, "--lora-rank", "2", "--device", "cpu")
    assert main([str(w) for w in (*words, "--lora-checkpoint", "other.safetensors", "--output-path", "o")]) == 1
    error = capsys.readouterr().err
    assert "other.safetensors is for another model" in error
    assert not Path("o").exists()


def test_dora_without_a_lora_and_in_a_format_without_it_are_usage_errors(capsys, tiny_folder):
    words = ("train", "sft", "--model", str(tiny_folder), "--dataset-base-path", "x", "--output-path", "o")
    assert main([*words, "--trainable-models", "dit", "--use-dora"]) == UsageError.exit_code
    assert "--use-dora has no effect without a LoRA to train" in capsys.readouterr().err
    assert main([*words, "--lora-rank", "2", "--use-dora", "--lora-format", "kohya"]) == UsageError.exit_code
    assert "--lora-format kohya cannot hold a DoRA" in capsys.readouterr().err
