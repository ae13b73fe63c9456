"""The loss and its gradients against the same written out in plain diffusers, peft and torch."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from dsctl_core.lora.layers import tuner_layers
from dsctl_core.losses import FlowMatchSFTLoss
from dsctl_core.training.model.task_module import TaskModule

TARGETS = ["to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj"]


def pixels(image):
    return torch.from_numpy(np.asarray(image, dtype=np.float32)).permute(2, 0, 1)[None, :, None] / 127.5 - 1


def a_picture(seed):
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((96, 64), Image.Resampling.BICUBIC)


def our_loss(pipe, rows, noise, timestep, **training_mode):
    """Return the module and its loss for a given noise and timestep, through units and FlowMatchSFTLoss."""
    module = TaskModule(pipe, "sft", lora_base_model="dit", lora_rank=4, lora_alpha=2, **training_mode)
    for index, layer in enumerate(tuner_layers(pipe.dit).values()):
        torch.nn.init.normal_(layer.lora_B["default"].weight, std=0.1, generator=torch.Generator().manual_seed(index))
    shared, posi, nega = pipe.inputs_from_rows(rows)
    shared, posi, nega = pipe.run_units({**shared, "noise": noise}, posi, nega)
    return module, FlowMatchSFTLoss(pipe, **shared, **posi, timestep=timestep)


def plain_loss(folder, rows, noise, timestep, lora):
    """Return the parameters and the loss of the same step, from diffusers' and peft's own parts."""
    from diffusers import QwenImagePipeline
    from peft import LoraConfig, inject_adapter_in_model

    pipe = QwenImagePipeline.from_pretrained(folder)
    pipe.transformer.requires_grad_(False)
    inject_adapter_in_model(LoraConfig(r=4, lora_alpha=2, target_modules=TARGETS), pipe.transformer)
    parameters = {name: p for name, p in pipe.transformer.named_parameters() if "lora_" in name}
    assert set(parameters) == set(lora)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(lora[name])
        config = pipe.vae.config
        mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1) for v in (config.latents_mean, config.latents_std))
        encoded = pipe.vae.encode(torch.cat([pixels(row["image"]) for row in rows])).latent_dist.mode()
        x0 = ((encoded - mean) / std)[:, :, 0]
        embeds, mask = pipe.encode_prompt([row["prompt"] for row in rows])
    batch, channels, height, width = x0.shape
    sigma = timestep / 1000
    noisy = (1 - sigma.view(-1, 1, 1, 1)) * x0 + sigma.view(-1, 1, 1, 1) * noise
    tokens = pipe._pack_latents(noisy, batch, channels, height, width)
    output = pipe.transformer(
        hidden_states=tokens,
        timestep=sigma,
        encoder_hidden_states=embeds,
        encoder_hidden_states_mask=mask,
        img_shapes=[[(1, height // 2, width // 2)]] * batch,
        return_dict=False,
    )[0]
    target = pipe._pack_latents(noise - x0, batch, channels, height, width)
    each = (output - target).square().mean(dim=(1, 2))
    levels = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    levels = math.exp(0.8) / (math.exp(0.8) + 1 / levels - 1)  # the schedule that training draws from

    def bell(s):
        return torch.exp(-2 * (s - 0.5) ** 2) - math.exp(-0.5)

    weight = bell(sigma.double()) / bell(levels).mean()
    return parameters, (each * weight.float()).mean()


@pytest.mark.parametrize("prompts", [["a fox"], ["a fox", "a small red circle in the top left corner"]])
def test_the_loss_and_every_lora_gradient_equal_plain_diffusers_and_peft(tiny_folder, load_pipe, prompts):
    rows = [{"image": a_picture(i), "prompt": prompt} for i, prompt in enumerate(prompts)]
    noise = torch.randn(len(rows), 16, 8, 12, generator=torch.Generator().manual_seed(5))
    timestep = torch.tensor([812.5, 137.0])[: len(rows)]
    module, loss = our_loss(load_pipe(), rows, noise, timestep)
    loss.backward()
    ours = {name.removeprefix("pipe.dit."): p for name, p in module.trainable_parameters()}
    parameters, expected = plain_loss(tiny_folder, rows, noise, timestep, ours)
    expected.backward()
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=1e-6)
    nonzero = 0
    for name, parameter in parameters.items():
        if parameter.grad is None:
            # The last block's text output goes nowhere, so part of its text branch has no gradient.
            assert ours[name].grad is None
            continue
        torch.testing.assert_close(ours[name].grad, parameter.grad, atol=1e-6, rtol=0)
        nonzero += bool(parameter.grad.abs().max() > 1e-6)
    assert nonzero >= 20


@pytest.mark.parametrize("offload", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(load_pipe, offload):
    rows = [{"image": a_picture(0), "prompt": "a fox", "seed": 3}]
    gradients = []
    for on in (False, True):
        pipe = load_pipe()
        module = TaskModule(
            pipe,
            "sft",
            lora_base_model="dit",
            lora_rank=4,
            use_gradient_checkpointing=on,
            use_gradient_checkpointing_offload=on and offload,
        )
        calls = []
        pipe.dit.transformer_blocks[0].register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        module(rows).backward()
        assert len(calls) == 1 + on
        gradients.append([p.grad for p in module.trainable_modules() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_a_model_that_knows_the_velocity_has_zero_loss(load_pipe):
    pipe = load_pipe()
    pipe.scheduler.set_timesteps(training=True)
    x0, noise = torch.randn(3, 16, 4, 6), torch.randn(3, 16, 4, 6)
    pipe.model_fn = lambda latents, timestep: noise - x0
    assert FlowMatchSFTLoss(pipe, input_latents=x0, noise=noise) == 0
    pipe.model_fn = lambda latents, timestep: noise - x0 + 0.1
    assert FlowMatchSFTLoss(pipe, input_latents=x0, noise=noise) > 1e-3


def test_a_sample_draws_its_timestep_from_its_own_seed(load_pipe):
    pipe = load_pipe()
    pipe.scheduler.set_timesteps(training=True)
    seen = []
    pipe.model_fn = lambda latents, timestep: seen.append(timestep) or latents
    x = torch.zeros(3, 16, 4, 6)
    FlowMatchSFTLoss(pipe, input_latents=x, noise=x, seed=[1, 2, 3])
    FlowMatchSFTLoss(pipe, input_latents=x[:1], noise=x[:1], seed=[2])
    assert seen[1][0] == seen[0][1]
    assert len(set(seen[0].tolist())) == 3
