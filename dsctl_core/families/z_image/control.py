"""Use Z-Image's control networks, which run layers of the transformer before their own blocks.

Legend: B samples, T prompt tokens, D channels of the prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from dsctl_core.control import ControlUse, ResidualControl, control_network
from dsctl_core.control.units import ControlImageEmbedder
from dsctl_core.memory.quantize import compute_dtype
from dsctl_core.memory.recompute import set_checkpointing
from dsctl_core.side_network import SideNetwork

# What `from_transformer` takes over from the transformer.
SHARED = (
    *("t_scale", "t_embedder", "all_x_embedder", "cap_embedder", "rope_embedder", "noise_refiner"),
    *("context_refiner", "x_pad_token", "cap_pad_token"),
)


@contextmanager
def sharing(network: Any, denoiser: Any) -> Iterator[None]:
    """Let `network` have layers of `denoiser` inside the block alone, so that they are not saved with it."""
    type(network).from_transformer(network, denoiser)
    try:
        yield
    finally:
        for name in SHARED:
            setattr(network, name, None)


def lists_of(
    latents: Tensor, prompt_embeds: Tensor, prompt_embeds_mask: Tensor | None, dtype: Any
) -> tuple[list[Any], list[Any]]:
    """Return the images (C, 1, h, w) and the prompts (T, D) of a batch, as lists in `dtype`, without padding."""
    images = list(latents.to(dtype).unsqueeze(2).unbind())
    prompts = list(prompt_embeds.to(dtype).unbind())
    if prompt_embeds_mask is not None:
        prompts = [row[keep] for row, keep in zip(prompts, prompt_embeds_mask, strict=True)]
    return images, prompts


def z_image_residuals(
    network: Any,
    denoiser: Any,
    control: Tensor,
    latents: Tensor,
    timestep: Tensor,
    prompt_embeds: Tensor,
    prompt_embeds_mask: Tensor | None = None,
    use_gradient_checkpointing: bool = False,
    use_gradient_checkpointing_offload: bool = False,
) -> Mapping[str, Any]:
    """Return the residuals of `network` by the layers of the transformer after which they are added.

    `control` are the control latents (B or 1, 16, h, w); for the other inputs see `model_fn_z_image`.
    """
    # diffusers' class says that it supports checkpointing, but lacks the attribute that its forward reads.
    network.__dict__.setdefault("gradient_checkpointing", False)
    set_checkpointing(network, use_gradient_checkpointing, use_gradient_checkpointing_offload)
    batch, dtype = len(latents), compute_dtype(denoiser, denoiser.layers[0].feed_forward.w1.weight)
    images, prompts = lists_of(latents, prompt_embeds, prompt_embeds_mask, dtype)
    own = compute_dtype(network, network.control_layers[0].feed_forward.w1.weight)
    shown = list(control.to(own).expand(batch, -1, -1, -1).unsqueeze(2).unbind())
    with sharing(network, denoiser):
        samples = network(images, (1000 - timestep.expand(batch)) / 1000, prompts, shown)
    return {"controlnet_block_samples": samples}


def z_image_control(name: str, columns: tuple[str, ...], use: ControlUse) -> SideNetwork:
    """Return the side network called `name`, which reads `columns`: the control image.

    Its residuals are for the tokens of the prompt too, so that the negative prompt has its own.
    """
    control = ResidualControl(name, z_image_residuals, use, own_prompt=True)
    return control_network(name, control, [ControlImageEmbedder(name, *columns)], columns)
