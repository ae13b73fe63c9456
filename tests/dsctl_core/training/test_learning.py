"""Training does what it is for: the loss falls, the picture changes, and nothing else does."""

import json

import accelerate
import numpy as np
import pytest
import torch
from PIL import Image

from dsctl_core import ModelLogger, launch_training_task, load_lora
from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.files.safetensors import read_safetensors
from dsctl_core.losses import FlowMatchSFTLoss
from dsctl_core.memory.offload import OffloadedLinear, offload_blocks
from dsctl_core.training.model.task_module import TaskModule

SIZE = {"height": 32, "width": 48, "num_inference_steps": 2, "seed": 1, "cfg_scale": 2.0}
TARGETS = "to_q,to_k,to_v,to_out.0,img_mlp.net.0.proj,img_mlp.net.2,proj_out,img_in"


def one_picture():
    small = np.random.default_rng(0).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((48, 32), Image.Resampling.BICUBIC)


ROWS = [{"image": one_picture(), "prompt": "a red fox"}]


def train(module, folder, rows=ROWS, mixed_precision="no", **kwargs):
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision=mixed_precision)
    settings = {"learning_rate": 1e-2, "max_steps": 3, **kwargs}
    return launch_training_task(accelerator, rows, module, ModelLogger(folder), **settings)


def fixed_loss(module):
    """The loss on the picture at four fixed noise levels and noises."""
    pipe = module.pipe
    shared, posi, nega = pipe.inputs_from_rows([dict(ROWS[0], seed=n) for n in range(4)])
    with torch.no_grad():
        shared, posi, nega = pipe.run_units(shared, posi, nega)
        return float(FlowMatchSFTLoss(pipe, **shared, **posi, timestep=torch.tensor([950.0, 800.0, 600.0, 400.0])))


class OneNoise(TaskModule):
    """Sees its sample at one noise and one timestep: 32 channels cannot carry the noise of 64, but can learn this."""

    def forward(self, data):
        return super().forward({**data, "seed": 4})


def test_100_lora_steps_on_one_picture_bring_the_loss_down_five_times(load_pipe, tmp_path):
    module = OneNoise(load_pipe(), "sft", lora_base_model="dit", lora_rank=16, lora_target_modules=TARGETS)
    before = float(module(ROWS[0]).detach())
    train(module, tmp_path / "out", max_steps=100)
    assert float(module(ROWS[0]).detach()) < before / 5


def test_on_random_noise_the_loss_falls_too(load_pipe, tmp_path):
    module = TaskModule(load_pipe(), "sft", lora_base_model="dit", lora_rank=16, lora_target_modules=TARGETS)
    before = fixed_loss(module)
    train(module, tmp_path / "out", max_steps=100)
    assert fixed_loss(module) < before / 2


def test_training_a_lora_leaves_every_base_weight_bit_identical(load_pipe, tmp_path):
    untouched, trained = load_pipe(), load_pipe()
    train(TaskModule(trained, "sft", lora_base_model="dit", lora_rank=4), tmp_path / "out")
    after = {n.replace(".base_layer", ""): p for n, p in trained.named_parameters() if ".lora_" not in n}
    before = dict(untouched.named_parameters())
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_the_saved_lora_changes_the_picture_and_scale_zero_gives_the_base_exactly(load_pipe, tmp_path):
    trained = load_pipe()
    module = TaskModule(trained, "sft", lora_base_model="dit", lora_rank=4)
    file = train(module, tmp_path / "out", max_steps=30).files[0]
    pictures = {}
    for scale in (None, 0.0, 1.0):
        pipe = load_pipe()
        if scale is not None:
            load_lora(pipe, file, scale)
        pictures[scale] = np.asarray(pipe("a red fox", **SIZE)).astype(int)
    assert np.array_equal(pictures[None], pictures[0.0])
    assert np.abs(pictures[1.0] - pictures[None]).mean() > 1
    trained.eval()
    assert np.abs(np.asarray(trained("a red fox", **SIZE)).astype(int) - pictures[1.0]).max() <= 1


def test_diffusers_loads_the_saved_lora_whole_and_gives_our_output(load_pipe, tiny_folder, tmp_path):
    from diffusers import QwenImagePipeline

    file = train(TaskModule(load_pipe(), "sft", lora_base_model="dit", lora_rank=4), tmp_path / "out").files[0]
    theirs = QwenImagePipeline.from_pretrained(tiny_folder)
    theirs.load_lora_weights(str(file))
    loaded = [name for name, _ in theirs.transformer.named_parameters() if "lora_" in name]
    assert len(loaded) == len(read_safetensors(file)[0]) > 0
    expected = theirs(
        "a red fox",
        negative_prompt="",
        true_cfg_scale=2.0,
        height=32,
        width=48,
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(1),
        output_type="np",
    ).images[0]
    ours = load_pipe()
    load_lora(ours, file)
    assert np.abs(np.asarray(ours("a red fox", **SIZE)) / 255 - expected).max() < 0.5 / 255 + 1e-5


def test_a_16_bit_run_keeps_the_lora_and_its_file_in_float32(load_pipe, tmp_path):
    module = TaskModule(load_pipe(torch_dtype=torch.bfloat16), "sft", lora_base_model="dit", lora_rank=4)
    file = train(module, tmp_path / "out").files[0]
    tensors, metadata = read_safetensors(file)
    assert {t.dtype for t in tensors.values()} == {torch.float32}
    expected = {"family": "qwen-image", "rank": "4", "alpha": "4", "steps": "3", "kind": "lora", "component": "dit"}
    assert expected.items() <= metadata.items()
    assert metadata["target_modules"].startswith("to_q,") and metadata["dsctl_version"]


def test_full_training_moves_the_dit_alone_and_saves_published_names(load_pipe, tmp_path):
    pipe = load_pipe()
    before = {name: p.clone() for name, p in pipe.named_parameters()}
    file = train(TaskModule(pipe, "sft", trainable_models="dit"), tmp_path / "out", learning_rate=1e-3).files[0]
    moved = {name.split(".")[0] for name, p in pipe.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"dit"}
    saved = read_safetensors(file)[0]
    assert saved.keys() == dict(pipe.dit.named_parameters()).keys()
    assert all(torch.equal(saved[name], p) for name, p in pipe.dit.named_parameters())


def test_part_of_a_component_can_be_trained(load_pipe, tmp_path):
    pipe = load_pipe()
    file = train(TaskModule(pipe, "sft", trainable_models="dit.proj_out"), tmp_path / "out").files[0]
    assert set(read_safetensors(file)[0]) == {"proj_out.weight", "proj_out.bias"}


def test_a_lora_and_another_component_train_together_into_a_file_each(load_pipe, tmp_path):
    pipe = load_pipe()
    before = {name: p.clone() for name, p in pipe.text_encoder.named_parameters()}
    module = TaskModule(pipe, "sft", trainable_models="text_encoder", lora_base_model="dit", lora_rank=2)
    files = train(module, tmp_path / "out").files
    assert [f.name for f in files] == ["step-3.text_encoder.safetensors", "step-3.dit.safetensors"]
    assert any(not torch.equal(p, before[name]) for name, p in pipe.text_encoder.named_parameters())


def test_a_lora_is_continued_from_its_file(load_pipe, tmp_path):
    first = train(TaskModule(load_pipe(), "sft", lora_base_model="dit", lora_rank=4), tmp_path / "a").files[0]
    module = TaskModule(load_pipe(), "sft", lora_base_model="dit", lora_rank=4, lora_checkpoint=first)
    tensors = read_safetensors(first)[0]
    again = module.export_trained()["dit"]
    assert again.keys() >= tensors.keys() != set()
    assert all(torch.equal(again[name], tensors[name]) for name in tensors)


def test_a_preset_lora_is_fused_into_the_base_before_training(load_pipe, tmp_path):
    first = train(TaskModule(load_pipe(), "sft", lora_base_model="dit", lora_rank=4), tmp_path / "a").files[0]
    with_lora = load_pipe()
    load_lora(with_lora, first)
    fused = load_pipe()
    TaskModule(fused, "sft", lora_base_model="dit", lora_rank=4, preset_lora_path=first, preset_lora_model="dit")
    difference = np.asarray(fused("a fox", **SIZE)).astype(int) - np.asarray(with_lora("a fox", **SIZE))
    assert np.abs(difference).max() <= 1


def test_frozen_weights_in_float8_train_a_lora_close_to_the_whole_ones(load_pipe, tmp_path):
    losses, stored = [], []
    for fp8 in ((), ("dit", "text_encoder")):
        pipe = load_pipe(torch_dtype=torch.bfloat16)
        module = TaskModule(pipe, "sft", lora_base_model="dit", lora_rank=4, fp8_models=fp8)
        summary = train(module, tmp_path / f"out{len(fp8)}", mixed_precision="bf16", learning_rate=1e-4)
        losses.append(summary.final_loss)
        stored.append(pipe.dit.transformer_blocks[0].attn.to_q.base_layer.weight.dtype)
        assert {p.dtype for p in module.trainable_modules()} == {torch.float32}
    assert stored == [torch.bfloat16, torch.float8_e4m3fn]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


def test_blocks_in_float8_that_wait_in_main_memory_give_the_same_losses_to_the_bit(load_pipe, tmp_path):
    losses = []
    for offloaded in (0, 2):
        pipe = load_pipe(torch_dtype=torch.bfloat16)
        module = TaskModule(pipe, "sft", lora_base_model="dit", lora_rank=4, fp8_models="dit")
        numbers = module.count_parameters()
        if offloaded:
            offload_blocks(pipe.dit, offloaded, torch.device("cpu"))
            assert module.count_parameters() == numbers, "every number is counted once"
            layers = [layer for layer in pipe.dit.modules() if isinstance(layer, OffloadedLinear)]
            dtypes = {layer.weight.dtype for layer in layers if "mod" not in str(layer)}
            assert len(layers) > 20 and torch.float8_e4m3fn in dtypes
        train(module, tmp_path / f"out{offloaded}", mixed_precision="bf16", learning_rate=1e-2)
        lines = (tmp_path / f"out{offloaded}" / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["loss"] for line in lines])
    assert len(losses[0]) > 2 and losses[0] == losses[1] and len({*losses[0]}) > 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "nothing is trainable"),
        ({"trainable_models": "dit", "lora_base_model": "dit"}, "cannot be trained whole and get a LoRA"),
        ({"trainable_models": "dit", "fp8_models": "dit"}, "cannot be stored in float8"),
        ({"trainable_models": "ditt"}, "unknown component of qwen-image 'ditt'"),
        ({"trainable_models": "dit.proj_ou"}, "unknown module of dit 'proj_ou'"),
        ({"lora_base_model": "dit", "lora_target_modules": "to_q,to_z"}, "'to_z' matches no linear layer"),
    ],
)
def test_what_cannot_be_trained_is_refused(load_pipe, settings, message):
    with pytest.raises((DsctlError, UsageError), match=message) as caught:
        TaskModule(load_pipe(), "sft", **settings)
    assert caught.value.hint
