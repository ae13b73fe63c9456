"""Use InstantX's control networks for Qwen-Image: some blocks of the transformer, whose outputs are its residuals.

Legend: B samples, C channels of the control latents.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dsctl_core.control import ControlUse, ResidualControl, control_network
from dsctl_core.control.units import ControlImageEmbedder
from dsctl_core.families.qwen_image.latents import pack
from dsctl_core.memory.quantize import compute_dtype
from dsctl_core.memory.recompute import set_checkpointing
from dsctl_core.side_network import SideNetwork


def union_residuals(
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
    """Return the residuals of `network`, which the transformer adds after each of its blocks.

    `control` are the control latents (B or 1, C, h, w); for the other inputs see `model_fn_qwen_image`.
    """
    set_checkpointing(network, use_gradient_checkpointing, use_gradient_checkpointing_offload)
    batch, _, height, width = latents.shape
    dtype = compute_dtype(network, network.img_in.weight)
    samples = network(
        hidden_states=pack(latents).to(dtype),
        controlnet_cond=pack(control).to(dtype).expand(batch, -1, -1),
        timestep=timestep.expand(batch) / 1000,
        encoder_hidden_states=prompt_embeds.to(dtype),
        encoder_hidden_states_mask=prompt_embeds_mask,
        img_shapes=[[(1, height // 2, width // 2)]] * batch,
        return_dict=False,
    )
    return {"controlnet_block_samples": list(samples)}


def union_control(name: str, columns: tuple[str, ...], use: ControlUse) -> SideNetwork:
    """Return the side network called `name`, which reads `columns`: the control image, and the mask if it takes one."""
    unit = ControlImageEmbedder(name, *columns)
    return control_network(name, ResidualControl(name, union_residuals, use), [unit], columns)
