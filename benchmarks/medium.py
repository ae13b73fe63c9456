"""The random model of medium size, its images, and the command line of the benchmarks that use it."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.run import REPOSITORY

MEDIUM = {
    "dit": {"num_layers": 8, "attention_head_dim": 64, "num_attention_heads": 8, "joint_attention_dim": 512},
    "vae": {"base_dim": 32, "num_res_blocks": 2},  # a third of the published width, and the published depth
    "text": {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 8},
}
ROPE = {"axes_dims_rope": (16, 24, 24)}


def write_model(folder: Path, medium: bool) -> None:
    """Write a random model: the medium one, or with the tiny sizes of the tests."""
    import torch
    from diffusers import (
        AutoencoderKLQwenImage,
        FlowMatchEulerDiscreteScheduler,
        QwenImagePipeline,
        QwenImageTransformer2DModel,
    )
    from transformers import AutoTokenizer, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    from dsctl_core.families.qwen_image.family import TINY

    sizes = {name: json.loads(json.dumps(config)) for name, config in TINY.items()}
    if medium:
        sizes["dit"].update({**MEDIUM["dit"], **ROPE})
        sizes["vae"].update(MEDIUM["vae"])
        text = sizes["text_encoder"]["text_config"]
        text.update({**MEDIUM["text"], "num_key_value_heads": 4})
        text["rope_parameters"]["mrope_section"] = [8, 12, 12]
        sizes["text_encoder"]["vision_config"]["out_hidden_size"] = MEDIUM["text"]["hidden_size"]
    torch.manual_seed(0)
    tokenizer = REPOSITORY / "dsctl_core" / "assets" / "tiny" / "tokenizer"
    QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.02),
        vae=AutoencoderKLQwenImage(**sizes["vae"]),
        text_encoder=Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**sizes["text_encoder"])),
        tokenizer=AutoTokenizer.from_pretrained(str(tokenizer)),
        transformer=QwenImageTransformer2DModel(**sizes["dit"]),
    ).save_pretrained(folder)


def write_z_image(folder: Path, medium: bool) -> None:
    """Write a random Z-Image of the same widths and depth, or with the tiny sizes of the tests."""
    import torch
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    from dsctl_core.families.z_image.family import TINY

    sizes = {name: json.loads(json.dumps(config)) for name, config in TINY.items()}
    if medium:
        sizes["dit"].update({"dim": 512, "n_layers": 8, "n_refiner_layers": 2, "n_heads": 8, "n_kv_heads": 8})
        sizes["dit"].update({"cap_feat_dim": MEDIUM["text"]["hidden_size"], "axes_dims": [16, 24, 24]})
        sizes["vae"].update({"block_out_channels": (32, 64, 128, 128), "norm_num_groups": 16, "layers_per_block": 2})
        sizes["text_encoder"].update({**MEDIUM["text"], "num_key_value_heads": 4, "head_dim": 64})
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(str(REPOSITORY / "dsctl_core" / "assets" / "tiny" / "tokenizer"))
    tokenizer.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=6.0),
        vae=AutoencoderKL(**sizes["vae"]),
        text_encoder=Qwen3ForCausalLM(Qwen3Config(**sizes["text_encoder"])),
        tokenizer=tokenizer,
        transformer=ZImageTransformer2DModel(**sizes["dit"]),
    ).save_pretrained(folder)


def write_dataset(folder: Path, samples: int, side: int) -> None:
    """Write pictures of noise, each with a prompt of its own."""
    from PIL import Image

    folder.mkdir(parents=True)
    lines = ["image,prompt"]
    for number in range(samples):
        Image.effect_noise((side, side), 40 + number).convert("RGB").save(folder / f"{number}.png")
        lines.append(f"{number}.png,picture number {number} of a thing {'on a red table ' * (number % 3)}")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def dsctl(*words: object) -> list[str]:
    return [sys.executable, "-m", "dsctl", *map(str, words), "--device", "cpu", "--quiet"]


def seconds_of(command: Sequence[str]) -> float:
    """Return how long a whole process takes."""
    began = time.perf_counter()
    subprocess.run(command, cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - began


def parser(name: str, description: str, rounds: int, steps: int, samples: int) -> argparse.ArgumentParser:
    """Return the options that these benchmarks share, with the defaults of one; its numbers go to build/NAME.json."""
    options = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description)
    options.add_argument("--rounds", type=int, default=rounds, help="rounds of each comparison (default: %(default)s)")
    options.add_argument("--steps", type=int, default=steps, help="training steps in a round (default: %(default)s)")
    options.add_argument("--samples", type=int, default=samples, help="pictures (default: %(default)s)")
    options.add_argument("--size", type=int, default=256, help="their height and width (default: %(default)s)")
    options.add_argument("--tiny", action="store_true", help="with the tiny model of the tests, to try the benchmark")
    options.add_argument("--json", type=Path, default=REPOSITORY / "build" / f"{name}.json", help="for the numbers")
    return options


def measure_and_tell(
    options: argparse.Namespace,
    measure: Callable[[argparse.Namespace, Path], dict[str, Any]],
    report: Callable[[dict[str, Any]], str],
) -> None:
    """Measure in a folder that is gone afterwards, print the table, and keep the numbers."""
    with tempfile.TemporaryDirectory() as folder:
        numbers = measure(options, Path(folder))
    print(report(numbers))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
