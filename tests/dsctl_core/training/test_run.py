"""A whole run from options: what it writes, its defaults, and that a run that cannot begin leaves nothing."""

import json

import pytest

from dsctl_core.commands.train import train
from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.families.resolve import resolve_model
from dsctl_core.files.safetensors import read_safetensors
from dsctl_core.options import TrainOptions
from dsctl_core.training.optim.optimizer import learning_rate


def options(tiny_folder, dataset_folder, out, **kwargs):
    settings = {
        "model": str(tiny_folder),
        "dataset_base_path": dataset_folder,
        "output_path": out,
        "lora_rank": 2,
        "max_steps": 2,
        "device": "cpu",
    }
    return TrainOptions(**{**settings, **kwargs})


def test_a_run_leaves_what_the_contract_says(tiny_folder, dataset_folder, tmp_path):
    result = train(options(tiny_folder, dataset_folder, tmp_path / "out", save_steps=1))
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"run.json", "metrics.jsonl", "state", "step-1.safetensors", "step-2.safetensors"}
    assert {path.name for path in (tmp_path / "out" / "state").glob("step-*")} == {"step-1", "step-2"}
    assert result.checkpoint == tmp_path / "out" / "step-2.safetensors"
    assert result.steps == 2
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["family"] == "qwen-image"
    assert run["options"]["lora_rank"] == 2
    assert run["options"]["learning_rate"] == 1e-4
    assert run["options"]["mixed_precision"] == "no"
    assert {"dsctl", "python", "torch", "diffusers", "transformers", "peft", "accelerate"} <= run["versions"].keys()
    assert run["parameters"]["trained"] == sum(t.numel() for t in read_safetensors(result.checkpoint)[0].values())
    assert read_safetensors(result.checkpoint)[1]["base_model"] == str(tiny_folder)


def test_two_equal_runs_are_equal_to_the_bit(tiny_folder, dataset_folder, tmp_path):
    results = [train(options(tiny_folder, dataset_folder, tmp_path / name)) for name in "ab"]
    first, second = (read_safetensors(result.checkpoint)[0] for result in results)
    assert results[0].final_loss == results[1].final_loss
    assert all(first[name].equal(second[name]) for name in first)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_every_lever_of_a_run_can_be_pulled_at_once(tiny_folder, dataset_folder, tmp_path, precision):
    result = train(
        options(
            tiny_folder,
            dataset_folder,
            tmp_path / "out",
            mixed_precision=precision,
            batch_size=2,
            gradient_accumulation_steps=2,
            use_gradient_checkpointing=True,
            use_gradient_checkpointing_offload=True,
            dataset_num_workers=1,
            height=32,
            width=32,
            dataset_repeat=3,
            fp8_models="text_encoder",
            remove_prefix_in_ckpt="pipe.dit.",
            lora_target_modules="to_q,to_k",
        )
    )
    assert result.steps == 2
    assert all(name.startswith("diffusion_model.") for name in read_safetensors(result.checkpoint)[0])


def test_a_run_that_names_nothing_to_train_is_refused_before_anything_is_written(tiny_folder, dataset_folder, tmp_path):
    for more in ({}, {"remove_prefix_in_ckpt": "pipe.dit."}):
        with pytest.raises(UsageError, match="nothing to train is given") as caught:
            train(options(tiny_folder, dataset_folder, tmp_path / "out", lora_rank=None, **more))
        assert "--lora-rank 32" in caught.value.hint
    assert not (tmp_path / "out").exists()


def test_model_paths_and_a_folder_are_the_same_model(tiny_folder, dataset_folder, tmp_path):
    names = ["transformer/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"]
    paths = json.dumps([str(tiny_folder / f"{name}.safetensors") for name in names])
    whole = train(options(tiny_folder, dataset_folder, tmp_path / "a"))
    parts = train(options(tiny_folder, dataset_folder, tmp_path / "b", model=None, model_paths=paths))
    assert parts.final_loss == whole.final_loss


def test_ids_are_found_below_the_model_base_path(tiny_folder, dataset_folder, tmp_path, monkeypatch):
    (tmp_path / "models" / "Some").mkdir(parents=True)
    (tmp_path / "models" / "Some" / "Model").symlink_to(tiny_folder)
    monkeypatch.setenv("DSCTL_MODEL_BASE_PATH", str(tmp_path / "models"))
    ids = "Some/Model:transformer/*.safetensors,Some/Model:vae/*.safetensors,Some/Model:text_encoder/*.safetensors"
    whole = train(options(tiny_folder, dataset_folder, tmp_path / "a"))
    parts = train(options(tiny_folder, dataset_folder, tmp_path / "b", model=None, model_id_with_origin_paths=ids))
    assert parts.final_loss == whole.final_loss


@pytest.mark.parametrize(
    ("settings", "rate"),
    [
        ({}, 1e-4),
        ({"lora_rank": None, "trainable_models": "dit"}, 1e-5),
        ({"learning_rate": 0.5}, 0.5),
        ({"model": "tiny"}, resolve_model("tiny").defaults["learning_rate"]),
    ],
)
def test_the_default_learning_rate_suits_what_is_trained(tmp_path, settings, rate):
    given = {"model": "qwen-image", "dataset_base_path": tmp_path, "output_path": tmp_path / "o", "lora_rank": 2}
    chosen = TrainOptions(**{**given, **settings})
    whole = chosen.training.trainable_models or ()
    assert learning_rate(chosen.optim, whole, resolve_model(chosen.weights.model)) == rate


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "qwen-imge"}, "unknown model 'qwen-imge'"),
        ({"model": "qwen-image"}, "Qwen/Qwen-Image is not in"),
        ({"model": "./nowhere"}, "nowhere does not exist"),
        ({"lora_target_modules": "to_q,to_zz"}, "'to_zz' matches no linear layer"),
        ({"lora_base_model": "ditt"}, "unknown component of qwen-image 'ditt'"),
        ({"lora_checkpoint": "missing.safetensors"}, "missing.safetensors cannot be read"),
        ({"preset_lora_path": "missing.safetensors"}, "missing.safetensors cannot be read"),
        ({"mixed_precision": "fp16"}, "fp16 needs a GPU"),
        ({"device": "cuda"}, "torch sees no such GPU"),
        ({"batch_size": 4, "extra_inputs": "edit_image"}, "unknown extra input 'edit_image'"),
    ],
)
def test_a_run_that_cannot_begin_says_why_and_leaves_no_folder(
    tiny_folder, dataset_folder, tmp_path, settings, message
):
    with pytest.raises((DsctlError, UsageError), match=message) as caught:
        train(options(tiny_folder, dataset_folder, tmp_path / "deep" / "out", **settings))
    assert caught.value.hint
    assert not (tmp_path / "deep").exists()


@pytest.mark.parametrize("name", ["nativ", "sage"])
def test_an_attention_backend_that_cannot_serve_is_refused_before_the_model_is_loaded(
    tiny_folder, dataset_folder, tmp_path, monkeypatch, name
):
    monkeypatch.setattr("dsctl_core.commands.train.build_module", lambda *_: pytest.fail("the model was loaded"))
    with pytest.raises(UsageError, match=f"attention backend '?{name}"):
        train(options(tiny_folder, dataset_folder, tmp_path / "out", attention_backend=name))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", ["cut", "foreign config", "no weights", "missing tensor"])
def test_a_damaged_model_is_named_before_anything_is_written(tiny_folder, dataset_folder, tmp_path, damage):
    import shutil

    from safetensors.torch import load_file, save_file

    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "foreign config":
        (folder / "transformer" / "config.json").write_text('{"_class_name": "FluxTransformer2DModel"}')
    elif damage == "no weights":
        weights.unlink()
    else:
        tensors = load_file(weights)
        tensors.pop("proj_out.weight")
        save_file(tensors, weights)
    with pytest.raises(DsctlError, match="transformer") as caught:
        train(options(folder, dataset_folder, tmp_path / "out"))
    assert caught.value.hint
    assert not (tmp_path / "out").exists()
