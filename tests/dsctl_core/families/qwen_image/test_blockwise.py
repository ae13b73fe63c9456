"""Qwen-Image's blockwise control network beside plain torch, and the shapes and names of the published weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import init_empty_weights
from PIL import Image
from torch import Tensor, nn

from dsctl_core.control import ControlUse
from dsctl_core.control.source import new_network
from dsctl_core.errors import UsageError
from dsctl_core.families.qwen_image.blockwise import (
    QwenImageBlockwiseControlNet,
    blockwise_control,
    blockwise_hooks,
)
from dsctl_core.families.qwen_image.controlnets import CONTROLNETS
from dsctl_core.families.qwen_image.family import FAMILY, PUBLISHED
from dsctl_core.families.qwen_image.latents import SPACE, pack
from dsctl_core.families.qwen_image.pipeline import QwenImagePipeline
from tests.tiny_models import randomize

PLAIN, INPAINT = CONTROLNETS[:2]
COLUMNS = ("control_image", "control_mask")


@pytest.fixture
def attached(pipe: QwenImagePipeline) -> Iterator[QwenImagePipeline]:
    """The pipeline with a random control network, which is taken off again."""
    units = pipe.units
    network = randomize(
        QwenImageBlockwiseControlNet(**PLAIN.new_config(FAMILY.tiny["dit"])), torch.Generator().manual_seed(1)
    )
    pipe.attach_side_network(blockwise_control("controlnet", COLUMNS[:1], ControlUse()), network.requires_grad_(False))
    yield pipe
    pipe.units, pipe.side_networks = units, ()
    del pipe._modules["controlnet"]


def inputs(batch: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "latents": torch.randn(batch, 16, 4, 6, generator=generator),
        "timestep": torch.tensor([700.0, 200.0])[:batch],
        "prompt_embeds": torch.randn(batch, 5, 32, generator=generator),
        "controlnet_latents": torch.randn(batch, 16, 4, 6, generator=generator),
    }


class PlainBlock(nn.Module):
    """A transformer block, and after it the residual in plain torch: x += O gelu(I (rms(x) + rms(y)))."""

    def __init__(self, block: nn.Module, weights: dict[str, Tensor], control: Tensor, scale: float) -> None:
        super().__init__()
        self.block, self.weights, self.control, self.scale = block, weights, control, scale

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        prompt, x = self.block(*args, **kwargs)
        w = self.weights
        both = _rms(x) * w["x_rms.weight"] + _rms(self.control) * w["y_rms.weight"]
        hidden = both @ w["input_proj.weight"].T + w["input_proj.bias"]
        hidden = 0.5 * hidden * (1 + torch.erf(hidden / 2**0.5))
        return prompt, x + self.scale * (hidden @ w["output_proj.weight"].T + w["output_proj.bias"])


def _rms(x: Tensor) -> Tensor:
    return x / (x.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt()


@pytest.mark.parametrize("recompute", [False, True])
def test_outputs_and_gradients_are_those_of_plain_torch(attached: Any, recompute: bool) -> None:
    network, scale = attached.controlnet.requires_grad_(True), 0.7
    given = inputs()
    use = {"controlnet": ControlUse(scale=scale)}
    made = attached.call_model_fn(**given, controls=use, use_gradient_checkpointing=recompute)
    made.square().mean().backward()
    actual = {name: weight.grad.clone() for name, weight in network.named_parameters()}
    attached.call_model_fn(**given, use_gradient_checkpointing=False)

    weights = {name: weight.detach().clone().requires_grad_() for name, weight in network.named_parameters()}
    control = pack(given["controlnet_latents"]) @ weights["img_in.weight"].T + weights["img_in.bias"]
    blocks = attached.dit.transformer_blocks
    attached.dit.transformer_blocks = nn.ModuleList(
        PlainBlock(block, _under(f"controlnet_blocks.{number}.", weights), control, scale)
        for number, block in enumerate(blocks)
    )
    try:
        expected = attached.call_model_fn(**{**given, "controlnet_latents": None})
    finally:
        attached.dit.transformer_blocks = blocks
    expected.square().mean().backward()
    torch.testing.assert_close(made, expected, atol=1e-5, rtol=0)
    for name, gradient in actual.items():
        torch.testing.assert_close(gradient, weights[name].grad, atol=1e-6, rtol=1e-5)
    assert (made - attached.call_model_fn(**{**given, "controlnet_latents": None})).abs().max() > 0.05
    assert all(gradient.abs().max() > 1e-6 for gradient in actual.values())


def _under(prefix: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}


def test_a_batch_equals_its_samples(attached: Any) -> None:
    pictures = [Image.effect_noise((48, 32), 30 + 30 * number).convert("RGB") for number in range(2)]
    given = {"height": 32, "width": 48, "num_inference_steps": 2, "cfg_scale": 2.0}
    together = attached(["a", "b"], seed=[1, 2], control_inputs={"control_image": pictures}, **given)
    for number, prompt in enumerate("ab"):
        alone = attached(prompt, seed=1 + number, control_inputs={"control_image": pictures[number]}, **given)
        assert np.abs(np.array(alone).astype(int) - np.array(together[number])).max() <= 1
    with pytest.raises(UsageError, match="unknown control input 'control_imag'"):
        attached("a", control_inputs={"control_imag": pictures[0]}, **given)


def test_a_new_network_changes_nothing_to_the_bit_and_learns(attached: Any) -> None:
    plain = attached.call_model_fn(**{**inputs(), "controlnet_latents": None})
    network = new_network(PLAIN, PLAIN.new_config(FAMILY.tiny["dit"]), seed=3)
    attached._modules["controlnet"] = network
    made = attached.call_model_fn(**inputs())
    assert torch.equal(made, plain)
    again = new_network(PLAIN, PLAIN.new_config(FAMILY.tiny["dit"]), seed=3)
    assert all(torch.equal(one, other) for one, other in zip(network.parameters(), again.parameters(), strict=True))
    made.square().mean().backward()
    assert network.controlnet_blocks[0].output_proj.weight.grad.abs().max() > 0


def test_names_and_shapes_are_the_published_ones() -> None:
    for kind, width in ((PLAIN, 64), (INPAINT, 68)):
        with init_empty_weights():
            network = QwenImageBlockwiseControlNet(**kind.new_config(PUBLISHED["dit"]))
        shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
        block = {"x_rms.weight": (3072,), "y_rms.weight": (3072,)}
        for layer in ("input_proj", "output_proj"):
            block |= {f"{layer}.weight": (3072, 3072), f"{layer}.bias": (3072,)}
        wanted = {f"controlnet_blocks.{n}.{name}": shape for n in range(60) for name, shape in block.items()}
        assert shapes == {**wanted, "img_in.weight": (3072, width), "img_in.bias": (3072,)}
        for each in (PLAIN, INPAINT):
            found = each.config_of(shapes, None, lambda _: False)
            assert (found == kind.new_config(PUBLISHED["dit"])) == (each is kind)
    of_the_transformer = {"img_in.weight": (3072, 64)}
    assert PLAIN.config_of(of_the_transformer, None, lambda _: False) is None


def test_the_mask_is_black_in_the_picture_and_a_channel_of_the_latents(pipe: QwenImagePipeline) -> None:
    unit = blockwise_control("controlnet", COLUMNS, ControlUse()).units[0]
    picture = Image.effect_noise((48, 32), 60).convert("RGB")
    mask = Image.new("L", (48, 32))
    mask.paste(255, (16, 0, 48, 32))
    mask.paste(100, (0, 0, 8, 32))
    with torch.no_grad():
        made = unit.process(pipe, control_image=picture, control_mask=mask, height=32, width=48)["controlnet_latents"]
        black = np.array(picture)
        black[np.array(mask) > 127] = 0
        pixels = torch.from_numpy(black).permute(2, 0, 1)[None] / 127.5 - 1
        expected = SPACE.encode(pipe.vae, pixels, False, 256, 192)
    assert made.shape == (1, 17, 4, 6)
    torch.testing.assert_close(made[:, :16], expected, atol=1e-5, rtol=0)
    kept = torch.tensor([1 - 100 / 255, 1, 0, 0, 0, 0]).expand(4, 6)
    torch.testing.assert_close(made[0, 16], kept)


def test_reference_tokens_behind_the_picture_stay_as_they_are() -> None:
    network = randomize(QwenImageBlockwiseControlNet(1, 64, 8), torch.Generator().manual_seed(0))
    hook = blockwise_hooks(network, None, 1.0, torch.randn(1, 16, 4, 4))["transformer_blocks.0"]
    prompt, hidden = torch.randn(2, 3, 8), torch.randn(2, 4 + 5, 8)
    before = hidden.clone()
    after_prompt, after = hook(None, None, (prompt, hidden))
    assert after_prompt is prompt
    assert torch.equal(after[:, 4:], before[:, 4:])
    assert (after[:, :4] != before[:, :4]).all()
    assert torch.equal(hidden, before), "the hook adds out of place"
