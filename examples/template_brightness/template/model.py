"""A brightness control for the model `tiny`: one number becomes tokens that every block attends to."""

import math

import torch

BLOCKS, HEADS, HEAD_DIM = 4, 4, 44  # of the transformer that the template is for
TOKENS, WAVES, HIDDEN = 4, 8, 64  # of the template


class Brightness(torch.nn.Module):
    """Maps `scale`, the mean luminance that is wanted from 0 (black) to 1 (white), to a kv_cache."""

    def __init__(self):
        super().__init__()
        self.mlp = torch.nn.Sequential(
            torch.nn.Linear(2 * WAVES, HIDDEN),
            torch.nn.SiLU(),
            torch.nn.Linear(HIDDEN, HIDDEN),
            torch.nn.SiLU(),
            torch.nn.Linear(HIDDEN, BLOCKS * 2 * TOKENS * HEADS * HEAD_DIM),
        )

    @torch.no_grad()
    def process_inputs(self, scale, **kwargs):
        """Return the waves of `scale`, (1, 2 * WAVES) float32."""
        angles = math.pi / 2 * float(scale) * torch.arange(1, WAVES + 1, dtype=torch.float32)
        return {"waves": torch.cat([angles.sin(), angles.cos()]).unsqueeze(0)}

    def forward(self, waves, **kwargs):
        """Return {"double_0": (key, value), ...}, each (1, TOKENS, HEADS, HEAD_DIM)."""
        first = self.mlp[0].weight
        tokens = self.mlp(waves.to(first)).view(1, BLOCKS, 2, TOKENS, HEADS, HEAD_DIM)
        return {"kv_cache": {f"double_{block}": (tokens[:, block, 0], tokens[:, block, 1]) for block in range(BLOCKS)}}


class DataProcessor:
    """A row's template_inputs are the scale itself."""

    def __call__(self, scale, **kwargs):
        """Return what process_inputs takes."""
        return {"scale": scale}


TEMPLATE_MODEL = Brightness
TEMPLATE_MODEL_PATH = None
TEMPLATE_DATA_PROCESSOR = DataProcessor
