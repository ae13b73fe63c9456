"""Use FLUX.1's control networks: some blocks of the transformer, whose outputs are residuals for both kinds of blocks.

Legend: B samples, N tokens of the picture, D channels of the transformer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from dsctl_core.control import ControlUse, ResidualControl, control_network
from dsctl_core.control.units import ControlImageEmbedder
from dsctl_core.families.flux1.latents import pack, places
from dsctl_core.memory.quantize import compute_dtype
from dsctl_core.memory.recompute import set_checkpointing
from dsctl_core.side_network import SideNetwork

DOUBLE, SINGLE = "controlnet_block_samples", "controlnet_single_block_samples"


def flux1_residuals(
    network: Any,
    denoiser: Any,
    control: Tensor,
    mode: int | None,
    latents: Tensor,
    timestep: Tensor,
    prompt_embeds: Tensor,
    pooled_embeds: Tensor,
    embedded_guidance: float | None = None,
    use_gradient_checkpointing: bool = False,
    use_gradient_checkpointing_offload: bool = False,
) -> Mapping[str, Any]:
    """Return the residuals of `network`, by the names of the transformer's inputs.

    `control` are the control latents (B or 1, 16, h, w), and `mode` is the number of the kind of the control picture;
    for the other inputs see `model_fn_flux1`.
    """
    set_checkpointing(network, use_gradient_checkpointing, use_gradient_checkpointing_offload)
    batch, _, height, width = latents.shape
    dtype, device = compute_dtype(network, network.x_embedder.weight), latents.device
    guidance = None
    if network.config.guidance_embeds:
        guidance = torch.full((batch,), embedded_guidance or 0.0, dtype=torch.float32, device=device)
    text_ids, image_ids = places(prompt_embeds.shape[1], ((height, width),), device)
    double, single = network(
        hidden_states=pack(latents).to(dtype),
        controlnet_cond=pack(control).to(dtype).expand(batch, -1, -1),
        controlnet_mode=None if mode is None else torch.full((batch, 1), mode, dtype=torch.long, device=device),
        timestep=timestep.expand(batch) / 1000,
        guidance=guidance,
        pooled_projections=pooled_embeds.to(dtype).expand(batch, -1),
        encoder_hidden_states=prompt_embeds.to(dtype).expand(batch, -1, -1),
        txt_ids=text_ids,
        img_ids=image_ids,
        return_dict=False,
    )
    return {name: list(each) for name, each in ((DOUBLE, double), (SINGLE, single)) if each is not None}


def residuals_of(samples: list[Tensor] | None, tokens: Tensor) -> list[Tensor] | None:
    """Return the residuals in the dtype and with the length of `tokens` (B, N + M, D): 0 for M reference tokens."""
    if samples is None:
        return None
    return [pad(sample, (0, 0, 0, tokens.shape[1] - sample.shape[1])).to(tokens.dtype) for sample in samples]


def flux1_control(name: str, columns: tuple[str, ...], use: ControlUse) -> SideNetwork:
    """Return the side network called `name`, which reads `columns`: the control image."""
    unit = ControlImageEmbedder(name, *columns)
    return control_network(name, ResidualControl(name, flux1_residuals, use), [unit], columns)
