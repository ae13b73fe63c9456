"""Merging, converting, resizing and extracting LoRAs, from the command line to the output of the model."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from dsctl.app import main
from dsctl_core.checkpoint.model_config import ModelConfig
from dsctl_core.families import load_family, pipeline_class
from dsctl_core.families.resolve import resolve_model
from dsctl_core.lora import FORMATS, LohaLayer, LokrLayer, LoraLayer, load_lora, read_lora, save_lora
from dsctl_core.lora.layers import linear_shapes
from tests.tiny_models import write_tiny_model

FAMILY = load_family("qwen-image")
DIT = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_model("qwen-image", tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def loras(model, tmp_path_factory):
    """Two LoRAs that share some layers, of different ranks and formats."""
    shapes = {
        name.removesuffix(".weight"): tensor.shape
        for name, tensor in load_file(model / DIT).items()
        if tensor.ndim == 2
    }
    folder = tmp_path_factory.mktemp("loras")
    generator = torch.Generator().manual_seed(2)
    made = []
    for number, (ends, rank, form) in enumerate([(("to_q", "to_k"), 3, "diffusers"), (("to_k", "net.2"), 2, "kohya")]):
        layers = {}
        for name, (rows, columns) in sorted(shapes.items()):
            if name.endswith(ends):
                down, up = (torch.randn(size, generator=generator) * 0.4 for size in ((rank, columns), (rows, rank)))
                layers[name] = LoraLayer(down, up, 0.75)
        path = folder / f"{'ab'[number]}.safetensors"
        made.append(save_lora(path, {"dit": layers}, {"family": "qwen-image"}, form=form))
    return made


def pipeline(folder, dtype=torch.float32):
    return pipeline_class(FAMILY).from_pretrained(
        torch_dtype=dtype, device="cpu", model_configs=[ModelConfig(folder)], only=["dit"]
    )


def velocity(folder, *loras, dtype=torch.float32):
    pipe = pipeline(folder, dtype)
    for path, scale in loras:
        load_lora(pipe, path, scale)
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        return pipe.dit(
            hidden_states=torch.randn(1, 6, 64, generator=generator).to(dtype),
            timestep=torch.tensor([0.5], dtype=dtype),
            encoder_hidden_states=torch.randn(1, 3, 32, generator=generator).to(dtype),
            encoder_hidden_states_mask=torch.ones(1, 3, dtype=torch.bool),
            img_shapes=[[(1, 2, 3)]],
            return_dict=False,
        )[0]


def run(capsys, *words, code=0):
    assert main([str(word) for word in (*words, "--json")]) == code, capsys.readouterr()
    printed = capsys.readouterr()
    return json.loads(printed.out) if code == 0 else printed.err


def test_merging_into_the_base_equals_base_and_adapters(capsys, model, loras):
    result = run(
        capsys,
        "merge-lora",
        "--model",
        model,
        "--lora",
        f"{loras[0]}:0.8",
        "--lora",
        f"{loras[1]}:0.5",
        "--output",
        "m",
    )
    expected = velocity(model, (loras[0], 0.8), (loras[1], 0.5))
    torch.testing.assert_close(velocity(Path("m")), expected, atol=1e-5, rtol=1e-5)
    assert (expected - velocity(model)).abs().max() > 0.05
    assert result["layers"] == {"dit": 8}
    files = {path.relative_to(model) for path in model.rglob("*") if path.is_file()}
    assert {path.relative_to("m") for path in Path("m").rglob("*") if path.is_file()} == files
    assert list(Path().iterdir()) == [Path("m")]


def test_a_merged_folder_is_a_model_everywhere(capsys, model, loras):
    run(capsys, "merge-lora", "--model", model, "--lora", loras[0], "--output", "merged")
    size = ("--height", "32", "--width", "32", "--num-inference-steps", "1", "--device", "cpu")
    run(capsys, "infer", "--model", "./merged", "--prompt", "a", *size, "--output", "a.png")
    assert Path("a.png").is_file()


def test_a_merged_preset_keeps_its_size_steps_and_guidance(capsys, tmp_path):
    layer = LoraLayer(torch.ones(2, 176) * 0.01, torch.ones(176, 2) * 0.01)
    lora = save_lora(tmp_path / "l.safetensors", {"dit": {"transformer_blocks.0.attn.to_q": layer}}, {})
    run(capsys, "merge-lora", "--model", "tiny", "--lora", lora, "--output", "merged")
    run(capsys, "infer", "--model", "./merged", "--prompt", "a", "--device", "cpu", "--output", "a.png")
    with Image.open("a.png") as picture:
        assert picture.size == (96, 96)
        about = json.loads(picture.text["parameters"])
    assert (about["num_inference_steps"], about["cfg_scale"]) == (20, 3.0)
    run(capsys, "merge-lora", "--model", "./merged", "--lora", lora, "--output", "again")
    assert resolve_model("./again").defaults == resolve_model("tiny").defaults
    from diffusers import QwenImagePipeline

    QwenImagePipeline.from_pretrained("again", local_files_only=True)


def test_shards_names_and_dtypes_stay_and_untouched_tensors_are_the_same_bytes(capsys, model, loras, tmp_path):
    import shutil

    sharded = shutil.copytree(model, tmp_path / "sharded")
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(model / DIT).items()}
    (sharded / DIT).unlink()
    names = sorted(tensors)
    weight_map = {}
    for number in (1, 2):
        part = names[number - 1 :: 2]
        file = f"diffusion_pytorch_model-0000{number}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, sharded / "transformer" / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (sharded / "transformer" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    run(capsys, "merge-lora", "--model", sharded, "--lora", loras[0], "--output", "m")
    lora = read_lora(loras[0]).components["dit"]
    merged = {}
    for file in sorted(Path("m/transformer").glob("*.safetensors")):
        merged |= load_file(file)
        assert file.stat().st_size == (sharded / "transformer" / file.name).stat().st_size
    assert merged.keys() == tensors.keys()
    for name, tensor in merged.items():
        layer = lora.get(name.removesuffix(".weight"))
        wanted = tensors[name] if layer is None else (tensors[name].float() + layer.scale * layer.up @ layer.down)
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, wanted.bfloat16()), name


@pytest.mark.parametrize("form", FORMATS)
def test_merging_two_loras_into_one_equals_applying_both(capsys, model, loras, form):
    name = "both" if FORMATS[form].folder else "both.safetensors"
    words = ("--lora", f"{loras[0]}:0.8", "--lora", f"{loras[1]}:0.5", "--into", "lora", "--model", model)
    result = run(capsys, "merge-lora", *words, "--lora-format", form, "--output", name)
    assert result["ranks"] == [2, 3, 5]
    expected = velocity(model, (loras[0], 0.8), (loras[1], 0.5))
    torch.testing.assert_close(velocity(model, (Path(name), 1.0)), expected, atol=1e-5, rtol=1e-5)


def test_cutting_down_to_the_full_rank_keeps_everything_and_below_says_how_much(capsys, model, loras):
    words = ("merge-lora", "--lora", loras[0], "--lora", loras[1], "--into", "lora", "--model", model)
    whole = run(capsys, *words, "--rank", "5", "--output", "whole.safetensors")
    assert whole["kept_energy"] == pytest.approx(1.0, abs=1e-9)
    expected = velocity(model, (loras[0], 1.0), (loras[1], 1.0))
    torch.testing.assert_close(velocity(model, (Path("whole.safetensors"), 1.0)), expected, atol=1e-4, rtol=1e-4)
    cut = run(capsys, *words, "--rank", "1", "--output", "cut.safetensors")
    assert 0 < cut["worst_kept_energy"] <= cut["kept_energy"] < 1
    assert cut["ranks"] == [1]


def test_the_kept_energy_is_what_an_svd_of_the_full_matrix_says(capsys, loras):
    result = run(capsys, "lora", "resize", loras[0], "--rank", "2", "--output", "r.safetensors")
    kept = total = 0.0
    cut = read_lora(Path("r.safetensors")).components["dit"]
    for name, layer in read_lora(loras[0]).components["dit"].items():
        full = layer.scale * layer.up @ layer.down
        singular = torch.linalg.svdvals(full.double())
        kept, total = kept + float((singular[:2] ** 2).sum()), total + float((singular**2).sum())
        small = cut[name].scale * cut[name].up @ cut[name].down
        assert float((full - small).double().norm() ** 2) == pytest.approx(float((singular[2:] ** 2).sum()), rel=1e-4)
    assert result["kept_energy"] == pytest.approx(kept / total, rel=1e-6)


def test_a_lora_goes_through_every_format_and_back(capsys, model, loras):
    previous, expected = loras[0], velocity(model, (loras[0], 1.0))
    for number, form in enumerate([*FORMATS, "diffusers"]):
        name = f"{number}" if FORMATS[form].folder else f"{number}.safetensors"
        run(capsys, "lora", "convert", previous, "--to", form, "--model", model, "--output", name)
        previous = Path(name)
        assert run(capsys, "lora", "info", previous)["format"] == form
        torch.testing.assert_close(velocity(model, (previous, 1.0)), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("network", ["lokr", "loha"])
def test_a_lokr_or_a_loha_becomes_the_lora_with_its_update_or_the_nearest_one(capsys, model, network):
    low, whole = {}, {}
    generator = torch.Generator().manual_seed(4)

    def rand(*shape):
        return torch.randn(shape, generator=generator) * 0.3

    for name, (rows, columns) in sorted(linear_shapes(pipeline(model).dit).items()):
        if name.endswith(("attn.to_q", "attn.to_k")):
            pairs = [(rand(rows, 2), rand(2, columns)) for _ in "ab"]
            first, second = (rand(2, 2),), (rand(rows // 2, 2), rand(2, columns // 2))
            low[name] = LokrLayer(first, second, 0.5) if network == "lokr" else LohaLayer(*pairs, 0.5)
            whole[name] = LokrLayer(first, (rand(rows // 2, columns // 2),))
    about = {"family": "qwen-image", "network": network, "factor": "2", "alpha": "3"}
    save_lora(Path("low.safetensors"), {"dit": low}, about, dtype="bfloat16", form="lycoris")
    words = ("--to", "diffusers", "--model", model, "--output")
    written = run(capsys, "lora", "convert", "low.safetensors", *words, "same.safetensors")
    assert written["network"] == [network] and written["ranks"] == [2]
    written = run(capsys, "lora", "convert", "low.safetensors", "--network", "lora", *words, "made.safetensors")
    assert (written["network"], written["ranks"]) == (["lora"], [4])
    info = run(capsys, "lora", "info", "made.safetensors")
    assert info["dtypes"] == ["float32"] and info["metadata"]["network"] == "lora" and "factor" not in info["metadata"]
    expected = velocity(model, (Path("low.safetensors"), 0.8))
    for name in ("same", "made"):
        torch.testing.assert_close(velocity(model, (Path(f"{name}.safetensors"), 0.8)), expected, atol=1e-5, rtol=1e-5)
    error = run(capsys, "lora", "convert", "made.safetensors", "--network", "lora", *words, "x.safetensors", code=2)
    assert "--network has no effect on made.safetensors, which is a LoRA already" in error
    save_lora(Path("whole.safetensors"), {"dit": whole}, {"family": "qwen-image"})
    error = run(capsys, "lora", "convert", "whole.safetensors", "--network", "lora", *words, "x.safetensors", code=1)
    assert "has no exact LoRA: its LoKr has rank" in error and "dsctl lora resize" in error
    resized = ("lora", "resize", "whole.safetensors", "--rank", "2", "--model", model, "--output", "near.safetensors")
    near = run(capsys, *resized)
    deltas = [layer.matrix() for layer in whole.values()]
    kept = sum(torch.linalg.svdvals(delta)[:2].square().sum() for delta in deltas)
    assert near["kept_energy"] == pytest.approx(float(kept / sum(d.square().sum() for d in deltas)), rel=1e-5)
    assert near["network"] == ["lora"] and 0.05 < near["kept_energy"] < 0.95
    assert not Path("x.safetensors").exists()


def test_extracting_what_was_merged_in_gives_the_lora_back(capsys, model, loras):
    run(capsys, "merge-lora", "--model", model, "--lora", loras[0], "--output", "tuned")
    result = run(
        capsys, "lora", "extract", "--base", model, "--tuned", "tuned", "--rank", "3", "--output", "e.safetensors"
    )
    assert result["kept_energy"] == pytest.approx(1.0, abs=1e-6)
    assert "left_out" not in result
    expected = velocity(model, (loras[0], 1.0))
    torch.testing.assert_close(velocity(model, (Path("e.safetensors"), 1.0)), expected, atol=1e-4, rtol=1e-4)


def test_what_a_lora_cannot_hold_is_told_by_extracting(capsys, model, loras):
    run(capsys, "merge-lora", "--model", model, "--lora", loras[0], "--output", "tuned")
    tensors = load_file(Path("tuned", DIT))
    tensors["proj_out.bias"] = tensors["proj_out.bias"] + 1
    save_file(tensors, Path("tuned", DIT), metadata={"format": "pt"})
    words = (
        "lora",
        "extract",
        "--base",
        model,
        "--tuned",
        Path("tuned", DIT),
        "--rank",
        "3",
        "--target-modules",
        "to_q",
    )
    result = run(capsys, *words, "--output", "e.safetensors")
    assert "proj_out.bias" in result["left_out"]
    assert all(name.endswith(".to_q") for name in read_lora(Path("e.safetensors")).components["dit"])


def test_info_shows_the_metadata(capsys, loras):
    facts = run(capsys, "lora", "info", loras[0])
    assert facts["components"] == {"dit": 4}
    assert facts["ranks"] == [3]
    assert facts["metadata"]["family"] == "qwen-image"
    assert main(["lora", "info", str(loras[1])]) == 0
    assert "kohya" in capsys.readouterr().out


def stranger(tmp_path, width=32, name="blocks.0.to_q"):
    layers = {name: LoraLayer(torch.ones(2, width), torch.ones(width, 2))}
    return save_lora(tmp_path / "stranger.safetensors", {"dit": layers}, {"family": "other"})


def pickle(tmp_path, suffix):
    torch.save({"a": torch.ones(1)}, tmp_path / f"l{suffix}")
    return tmp_path / f"l{suffix}"


def truncated(tmp_path, source):
    (tmp_path / "cut.safetensors").write_bytes(source.read_bytes()[:-10])
    return tmp_path / "cut.safetensors"


@pytest.mark.parametrize("command", ["merge-lora", "infer", "train"])
@pytest.mark.parametrize(
    ("make", "said", "code"),
    [
        (lambda t, loras: stranger(t), "is for another model", 1),
        (lambda t, loras: stranger(t, 8, "transformer_blocks.0.attn.to_q"), "is for another model", 1),
        (lambda t, loras: truncated(t, loras[0]), "is damaged", 1),
        (lambda t, loras: pickle(t, ".pt"), "is a pickle in a zip archive", 1),
        (lambda t, loras: pickle(t, ".ckpt"), "is a pickle in a zip archive", 1),
        (lambda t, loras: f"{loras[0]}:abc", "the scale 'abc' is not a number", 2),
        (lambda t, loras: t / "absent.safetensors", "absent.safetensors cannot be read", 1),
    ],
)
def test_a_lora_that_cannot_be_used_is_refused_everywhere(capsys, model, loras, tmp_path, command, make, said, code):
    lora = make(tmp_path, loras)
    Path("data").mkdir()
    Image.new("RGB", (32, 32), "red").save("data/a.png")
    Path("data/metadata.csv").write_text("image,prompt\na.png,a red square\n", encoding="utf-8")
    words = {
        "merge-lora": ("--output", "m"),
        "infer": ("--prompt", "a", "--height", "32", "--width", "32", "--output", "m/a.png", "--device", "cpu"),
        "train": ("--dataset-base-path", "data", "--lora-rank", "2", "--max-steps", "1", "--output-path", "m"),
    }[command]
    error = run(capsys, command, "--model", model, "--lora", lora, *words, code=code)
    assert said in error
    assert "hint: " in error
    assert not Path("m").exists()


def test_unmatched_layers_are_listed_and_refused_unless_a_part_is_allowed(capsys, model, loras):
    layers = dict(read_lora(loras[0]).components["dit"])
    layers["transformer_blocks.7.attn.to_q"] = next(iter(layers.values()))
    save_lora(Path("partly.safetensors"), {"dit": layers}, {})
    words = ("merge-lora", "--model", model, "--lora", "partly.safetensors", "--output", "m")
    error = run(capsys, *words, code=1)
    assert "1 of its 5 layers is not in this model: dit.transformer_blocks.7.attn.to_q" in error
    assert "--allow-partial" in error
    run(capsys, *words, "--allow-partial")
    torch.testing.assert_close(velocity(Path("m")), velocity(model, (loras[0], 1.0)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("words", "said", "code"),
    [
        (("merge-lora", "--output", "m"), "no LoRA is given", 2),
        (("merge-lora", "--lora", "a", "--output", "m"), "no model is given", 2),
        (("merge-lora", "--lora", "A", "--model", "M", "--rank", "2", "--output", "m"), "--rank has no effect", 2),
        (("merge-lora", "--lora", "B", "--into", "lora", "--output", "x.safetensors"), "without dots", 2),
        (("lora", "convert", "A", "--to", "peft", "--output", "x.safetensors"), "the format peft is a folder", 2),
        (("lora", "convert", "A", "--to", "kohya", "--output", "x"), "a file NAME.safetensors", 2),
        (("lora", "convert", "A", "--to", "kohya", "--output", "A"), "already exists", 1),
        (("lora", "extract", "--base", "M", "--tuned", "M", "--rank", "2", "--output", "x"), "does not differ", 1),
        (("merge-lora", "--lora", "A", "--model", "M", "--output", "."), "is not empty", 1),
    ],
)
def test_commands_that_make_no_sense_are_refused(capsys, model, loras, words, said, code):
    Path("here").write_text("", encoding="utf-8")
    places = {"A": loras[0], "B": loras[1], "M": model}
    assert said in run(capsys, *(places.get(word, word) for word in words), code=code)
    assert [path.name for path in Path().iterdir()] == ["here"]


def test_loras_of_two_families_are_not_merged_into_one(capsys, loras, tmp_path):
    words = ("--lora", loras[0], "--lora", stranger(tmp_path), "--into", "lora", "--output", "m.safetensors")
    assert "different families: other, qwen-image" in run(capsys, "merge-lora", *words, code=1)


def test_a_full_disk_leaves_no_half_of_a_model(capsys, model, loras, monkeypatch):
    import shutil

    usage = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    error = run(capsys, "merge-lora", "--model", model, "--lora", loras[0], "--output", "deep/m", code=1)
    assert "kB free" in error
    assert list(Path().iterdir()) == []
