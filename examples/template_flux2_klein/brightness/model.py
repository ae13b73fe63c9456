"""A brightness control for FLUX.2 klein base 4B: one number becomes tokens that every block attends to."""

import math

import torch

# Of the transformer that the template is for: blocks of two streams, of one stream, and their attention.
SIZES = {"double": 5, "single": 20, "heads": 24, "head_dim": 128}
TOKENS, WAVES, HIDDEN = 4, 8, 256  # of the template


class Brightness(torch.nn.Module):
    """Maps `scale`, the mean luminance that is wanted from 0 (black) to 1 (white), to a kv_cache."""

    def __init__(self, double, single, heads, head_dim):
        super().__init__()
        self.blocks = [f"double_{n}" for n in range(double)] + [f"single_{n}" for n in range(single)]
        self.shape = (TOKENS, heads, head_dim)
        self.encode = torch.nn.Sequential(
            torch.nn.Linear(2 * WAVES, HIDDEN),
            torch.nn.SiLU(),
            torch.nn.Linear(HIDDEN, HIDDEN),
            torch.nn.SiLU(),
        )
        size = 2 * TOKENS * heads * head_dim
        self.heads = torch.nn.ModuleDict({name: torch.nn.Linear(HIDDEN, size) for name in self.blocks})

    @torch.no_grad()
    def process_inputs(self, scale, **kwargs):
        """Return the waves of `scale`, (1, 2 * WAVES) float32."""
        angles = math.pi / 2 * float(scale) * torch.arange(1, WAVES + 1, dtype=torch.float32)
        return {"waves": torch.cat([angles.sin(), angles.cos()]).unsqueeze(0)}

    def forward(self, waves, **kwargs):
        """Return {"double_0": (key, value), ...}, each (1, TOKENS, heads, head_dim)."""
        hidden = self.encode(waves.to(self.encode[0].weight))
        cache = {}
        for name in self.blocks:
            key, value = self.heads[name](hidden).view(1, 2, *self.shape).unbind(1)
            cache[name] = (key, value)
        return {"kv_cache": cache}


class DataProcessor:
    """A row's template_inputs are the scale itself."""

    def __call__(self, scale, **kwargs):
        """Return what process_inputs takes."""
        return {"scale": scale}


TEMPLATE_MODEL = Brightness
TEMPLATE_MODEL_CONFIG = SIZES
TEMPLATE_MODEL_PATH = None
TEMPLATE_DATA_PROCESSOR = DataProcessor
