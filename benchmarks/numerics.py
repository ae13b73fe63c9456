"""Count how many numbers of a LoRA a short training in bfloat16 leaves where they were. See README.md.

python -m benchmarks.numerics             # 20 steps at a rate of 1e-5 on the medium model
python -m benchmarks.numerics --layers 6  # of the same widths, with fewer layers
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks.medium import MEDIUM, ROPE
from dsctl_core import ModelConfig, ModelLogger, launch_training_task
from dsctl_core.families import load_family, pipeline_class
from dsctl_core.options import OptimizerOptions
from dsctl_core.options.processes import ProcessCountOptions
from dsctl_core.training.distributed.accelerator import make_accelerator
from dsctl_core.training.model.task_module import TaskModule
from dsctl_core.training.optim.optimizer import plan_optimizer

FAMILY = load_family("qwen-image")
STEPS, RATE, RANK = 20, 1e-5, 32


def write_model(folder: Path, layers: int) -> Path:
    """Write a random model with the medium transformer's widths, and the smallest of everything else."""
    from diffusers import QwenImageTransformer2DModel

    from tests.tiny_models import write_tiny_model

    write_tiny_model(FAMILY.name, folder)
    sizes = {**FAMILY.tiny["dit"], **MEDIUM["dit"], **ROPE, "num_layers": layers}
    sizes["joint_attention_dim"] = FAMILY.tiny["dit"]["joint_attention_dim"]
    torch.manual_seed(0)
    QwenImageTransformer2DModel(**sizes).save_pretrained(folder / "transformer")
    return folder


def load(folder: Path) -> TaskModule:
    """Return a LoRA to be trained on the model in `folder`, held in bfloat16."""
    pipe = pipeline_class(FAMILY).from_pretrained(
        torch_dtype=torch.bfloat16, device="cpu", model_configs=[ModelConfig(folder)]
    )
    return TaskModule(pipe, "sft", lora_base_model="dit", lora_rank=RANK)


def train(module: TaskModule, folder: Path, steps: int = STEPS, **settings: Any) -> None:
    """Train `module` on two pictures; nothing but gradients moves the weights."""
    rows = [{"image": Image.effect_noise((32, 32), 60 + n).convert("RGB"), "prompt": f"picture {n}"} for n in range(2)]
    options = OptimizerOptions(weight_decay=0)
    launch_training_task(
        make_accelerator("cpu", "bf16", ProcessCountOptions()),
        rows,
        module,
        ModelLogger(folder),
        max_steps=steps,
        optimizer=plan_optimizer(options, RATE),
        **settings,
    )


def first_halves(module: nn.Module) -> dict[str, Tensor]:
    """Return a copy of every lora_A."""
    return {name: p.detach().clone() for name, p in module.named_parameters() if ".lora_A." in name}


def unmoved(before: dict[str, Tensor], after: dict[str, Tensor]) -> float:
    """Return the share of numbers that are the same to the bit."""
    same = sum(int((after[name] == value).sum()) for name, value in before.items())
    return same / sum(value.numel() for value in before.values())


def main(words: Sequence[str] | None = None) -> None:
    """Measure, and print the result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=MEDIUM["dit"]["num_layers"])
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        module = load(write_model(folder / "model", options.layers))
        before = first_halves(module)
        train(module, folder / "run", options.steps)
        shares = {name: float((value == before[name]).float().mean()) for name, value in first_halves(module).items()}
        result = {
            "layers": options.layers,
            "parameters": module.count_parameters(),
            "steps": options.steps,
            "learning_rate": RATE,
            "unmoved_lora_A": unmoved(before, first_halves(module)),
            "wholly_unmoved_layers": [name for name, share in shares.items() if share == 1],
        }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
