"""Define Qwen-Image's blockwise control network, which no library has, and its effect on the transformer.

Names and shapes are those of the published weights (DiffSynth-Studio/Qwen-Image-Blockwise-ControlNet-Canny, -Depth and
-Inpaint), which ComfyUI loads too.

Legend: B samples, S tokens of the picture, D channels of the transformer, C channels of the control latents.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.normalization import RMSNorm
from torch import Tensor, nn
from torch.nn.functional import gelu

from dsctl_core.control import ControlUse, HookControl, control_network
from dsctl_core.control.units import ControlImageEmbedder
from dsctl_core.families.qwen_image.latents import pack
from dsctl_core.memory.quantize import compute_dtype
from dsctl_core.side_network import SideNetwork


class BlockwiseControlBlock(nn.Module):
    """The residual of one transformer block: two linear layers on the sum of both normalized streams."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.x_rms, self.y_rms = RMSNorm(dim, eps=1e-6), RMSNorm(dim, eps=1e-6)
        self.input_proj, self.output_proj = nn.Linear(dim, dim), nn.Linear(dim, dim)
        nn.init.zeros_(self.output_proj.weight)
        nn.init.zeros_(self.output_proj.bias)

    def forward(self, hidden: Tensor, control: Tensor) -> Tensor:
        """Return the residual (B, S, D) for the output `hidden` of the block and the control tokens, (B, S, D) both."""
        return self.output_proj(gelu(self.input_proj(self.x_rms(hidden) + self.y_rms(control))))


class QwenImageBlockwiseControlNet(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """A control network with one small block beside each block of the transformer.

    A new one changes nothing: the last layers of its blocks and the embedding of its input are zero.

    Args:
        num_layers: Number of blocks, that of the transformer.
        in_channels: Channels of a control token, 4 C: 64, or 68 with the mask as a 17th channel.
        dim: Channels of the transformer.
    """

    _no_split_modules: Any = ("BlockwiseControlBlock",)
    _repeated_blocks: Any = ("BlockwiseControlBlock",)

    @register_to_config
    def __init__(self, num_layers: int = 60, in_channels: int = 64, dim: int = 3072) -> None:
        super().__init__()
        self.img_in = nn.Linear(in_channels, dim)
        self.controlnet_blocks = nn.ModuleList(BlockwiseControlBlock(dim) for _ in range(num_layers))
        nn.init.zeros_(self.img_in.weight)
        nn.init.zeros_(self.img_in.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the control tokens (B, S, D) that all blocks read, from those of the control latents (B, S, 4 C)."""
        return self.img_in(tokens)


def blockwise_hooks(network: Any, denoiser: Any, scale: float, control: Tensor) -> Mapping[str, Any]:
    """Return the hooks that add the residuals of `network` to the picture's tokens after each transformer block.

    `control` are the control latents (B or 1, C, h, w). Reference tokens behind those of the picture stay as they are.
    """
    tokens = network(pack(control).to(compute_dtype(network, network.img_in.weight)))

    def hook_of(block: nn.Module) -> Any:
        def hook(module: nn.Module, inputs: Any, output: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            prompt, hidden = output
            count = tokens.shape[1]
            picture = hidden[:, :count]
            steered = picture + scale * block(picture, tokens.expand(len(hidden), -1, -1)).to(hidden.dtype)
            return prompt, steered if count == hidden.shape[1] else torch.cat([steered, hidden[:, count:]], dim=1)

        return hook

    return {f"transformer_blocks.{number}": hook_of(block) for number, block in enumerate(network.controlnet_blocks)}


def blockwise_control(name: str, columns: tuple[str, ...], use: ControlUse) -> SideNetwork:
    """Return the side network called `name`, which reads `columns`: the control image, and the mask if it takes one."""
    unit = ControlImageEmbedder(name, *columns)
    return control_network(name, HookControl(name, blockwise_hooks, use), [unit], columns)
