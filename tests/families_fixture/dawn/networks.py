"""The networks of Dawn, which no library has: small, but with everything that the rest relies on."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

CHANNELS, TEXT, PICTURE = 16, 32, 16


class DawnBlock(nn.Module):
    """Attention of the clip's tokens over themselves and what they are told, then a perceptron."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.to_out = nn.Linear(width, width)
        self.net = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        """Return (B, N, D) from `x` (B, N, D) and `told` (B, L, D)."""
        seen = torch.cat([self.norm(x), told], dim=1)
        x = x + self.to_out(scaled_dot_product_attention(self.to_q(self.norm(x)), self.to_k(seen), self.to_v(seen)))
        return x + self.net(x)


class DawnTransformer(ModelMixin, ConfigMixin):
    """The velocity of latents (B, 16, t, h, w) in patches of (1, 2, 2)."""

    _supports_gradient_checkpointing = True
    _repeated_blocks = ("DawnBlock",)
    _no_split_modules = ("DawnBlock",)

    @register_to_config
    def __init__(self, width: int = 32, layers: int = 2) -> None:
        super().__init__()
        self.patch = nn.Conv3d(CHANNELS, width, (1, 2, 2), (1, 2, 2))
        self.time, self.text, self.picture = nn.Linear(1, width), nn.Linear(TEXT, width), nn.Linear(PICTURE, width)
        self.blocks = nn.ModuleList(DawnBlock(width) for _ in range(layers))
        self.proj_out = nn.Linear(width, CHANNELS * 4)
        self.gradient_checkpointing = False

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        image_embeds: Tensor | None = None,
        controlnet_block_samples: list[Tensor] | None = None,
    ) -> Tensor:
        """Return the velocity, of the shape of `hidden_states`; `timestep` (B,) is in [0, 1000]."""
        batch, _, frames, height, width = hidden_states.shape
        x = self.patch(hidden_states).flatten(2).transpose(1, 2)
        x = x + self.time((timestep / 1000).to(x)[:, None])[:, None]
        told = self.text(encoder_hidden_states)
        if image_embeds is not None:
            told = torch.cat([told, self.picture(image_embeds).expand(batch, -1, -1)], dim=1)
        for number, block in enumerate(self.blocks):
            recompute: Any = self._gradient_checkpointing_func if self.gradient_checkpointing else None
            x = block(x, told) if recompute is None else recompute(block, x, told)
            if controlnet_block_samples is not None:
                x = x + controlnet_block_samples[number]
        patches = self.proj_out(x).reshape(batch, frames, height // 2, width // 2, CHANNELS, 2, 2)
        return patches.permute(0, 4, 1, 2, 5, 3, 6).reshape(hidden_states.shape)


class DawnControl(ModelMixin, ConfigMixin):
    """Residuals (B, N, D) for the blocks of a DawnTransformer, from control latents and the noisy ones."""

    @register_to_config
    def __init__(self, width: int = 32, layers: int = 2) -> None:
        super().__init__()
        self.patch = nn.Conv3d(2 * CHANNELS, width, (1, 2, 2), (1, 2, 2))
        self.outputs = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))

    def forward(self, control: Tensor, latents: Tensor) -> list[Tensor]:
        """Return one residual a block."""
        x = self.patch(torch.cat([control.expand_as(latents), latents], dim=1)).flatten(2).transpose(1, 2)
        return [output(x) for output in self.outputs]
