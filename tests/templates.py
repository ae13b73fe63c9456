"""Template models for tests, as folders with a model.py."""

from __future__ import annotations

from pathlib import Path

# In the shape of the templates that DiffSynth-Studio publishes: torch alone, a number in, keys and values out.
BRIGHTNESS = """
import torch


class Value(torch.nn.Module):
    def __init__(self, width, length):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.SiLU(), torch.nn.Linear(16, length * width))
        self.position = torch.nn.Parameter(torch.randn(length, width))
        self.length = length

    def forward(self, value):
        waves = torch.sin(value[:, None] * torch.arange(1, 9, device=value.device, dtype=value.dtype))
        return self.net(waves).view(1, self.length, -1) + self.position


class Brightness(torch.nn.Module):
    def __init__(self, blocks=2, heads=2, width=16, length=3):
        super().__init__()
        self.heads = heads
        names = [f"double_{i}" for i in range(blocks)]
        self.keys = torch.nn.ModuleDict({name: Value(heads * width, length) for name in names})
        self.values = torch.nn.ModuleDict({name: Value(heads * width, length) for name in names})

    @torch.no_grad()
    def process_inputs(self, pipe, scale, **kwargs):
        return {"value": torch.Tensor([scale]).to(dtype=pipe.torch_dtype, device=pipe.device)}

    def forward(self, value, **kwargs):
        def shaped(tokens):
            return tokens.view(1, tokens.shape[1], self.heads, -1)

        return {"kv_cache": {n: (shaped(self.keys[n](value)), shaped(self.values[n](value))) for n in self.keys}}


class DataProcessor:
    def __call__(self, scale, **kwargs):
        return {"scale": scale}


TEMPLATE_MODEL = Brightness
TEMPLATE_MODEL_PATH = None
TEMPLATE_DATA_PROCESSOR = DataProcessor
"""

# A frozen encoder in the first half, a trained part in the second.
ENCODER = """
import torch


class Encoded(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = torch.nn.Linear(4, 8)
        self.mlp = torch.nn.Linear(8, 2 * 2 * 2 * 16)

    @torch.no_grad()
    def process_inputs(self, colour, **kwargs):
        weight = self.encoder.weight
        return {"encoded": self.encoder(torch.tensor([colour]).to(weight))}

    def forward(self, encoded, **kwargs):
        k0, v0 = self.mlp(encoded.to(self.mlp.weight)).view(2, 1, 2, 2, 16)
        return {"kv_cache": {"double_0": (k0, v0), "double_1": (v0, k0)}}


TEMPLATE_MODEL = Encoded
"""

# A LoRA on two layers of the tiny transformer, one scale for both.
LORA = """
import torch

LAYERS = {"transformer_blocks.0.attn.to_q": (32, 32), "transformer_blocks.1.img_mlp.net.2": (32, 128)}


class Lora(torch.nn.Module):
    def __init__(self, rank=2):
        super().__init__()
        self.down = torch.nn.ParameterList([torch.randn(rank, i) * 0.2 for o, i in LAYERS.values()])
        self.up = torch.nn.ParameterList([torch.randn(o, rank) * 0.2 for o, i in LAYERS.values()])

    @torch.no_grad()
    def process_inputs(self, strength=1.0, **kwargs):
        return {"strength": torch.tensor(float(strength))}

    def forward(self, strength, **kwargs):
        lora = {}
        for (name, _), down, up in zip(LAYERS.items(), self.down, self.up):
            lora[f"{name}.lora_A.weight"] = down
            lora[f"{name}.lora_B.weight"] = up * strength.to(up)
        return {"lora": lora}


TEMPLATE_MODEL = Lora
"""

# Tokens behind those of the prompt.
WORDS = """
import torch


class Words(torch.nn.Module):
    def __init__(self, tokens=3, width=32):
        super().__init__()
        self.table = torch.nn.Parameter(torch.randn(1, tokens, width))

    @torch.no_grad()
    def process_inputs(self, gain=1.0, **kwargs):
        return {"gain": float(gain)}

    def forward(self, gain, **kwargs):
        return {"prompt_embeds": self.table + gain}


TEMPLATE_MODEL = Words
"""


def write_template(folder: Path, code: str = BRIGHTNESS, **replaced: str) -> Path:
    """Write a template to `folder`; `replaced` has texts in its code by what stands for them."""
    folder.mkdir(parents=True, exist_ok=True)
    for old, new in replaced.items():
        code = code.replace(old, new)
    (folder / "model.py").write_text(code, encoding="utf-8")
    return folder
