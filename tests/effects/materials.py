"""What the commands are run on: models, datasets, a cache, LoRAs, templates, runs."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from dsctl_core.checkpoint.model_config import ModelConfig
from dsctl_core.commands.cache import make_cache
from dsctl_core.commands.lora import convert
from dsctl_core.commands.template import pack
from dsctl_core.control.source import new_network
from dsctl_core.families import load_family
from dsctl_core.options import CacheOptions
from dsctl_core.options.lora_tools import LoraConvertOptions
from dsctl_core.options.template_tools import TemplatePackOptions
from dsctl_core.template.model import load_template
from dsctl_core.template.trust import Trust
from tests.templates import WORDS, write_template
from tests.tiny_captioners import write_tiny_captioner
from tests.tiny_models import randomize, write_tiny_model

TABLE = """\
image,prompt,other,second,seed,num_inference_steps
0.png,a red one,one,1.png,1,2
1.png,a blue one,two,0.png,2,2
"""


def write_materials(folder: Path) -> Path:
    """Write everything into `folder` and return it."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        _models()
        _datasets()
        _loras()
        _controlnets()
        _templates()
        _runs()
        make_cache(CacheOptions(model="./tiny", dataset_base_path="data", output_path="cache", device="cpu"))
    finally:
        os.chdir(before)
    return folder


def _models() -> None:
    write_tiny_model("qwen-image", Path("tiny"))
    write_tiny_model("qwen-image", Path("other"), seed=1)
    Path("models/own").mkdir(parents=True)
    Path("other/tokenizer/README").write_text("another one", encoding="utf-8")
    shutil.copytree("other", "models/own/other")
    write_tiny_captioner("llava", Path("captioner"))


def _datasets() -> None:
    Path("datasets.toml").write_text('[[dataset]]\npath = "more"\n[[dataset]]\npath = "data"\n', encoding="utf-8")
    for folder in ("data", "more", "clips", "outside", "twice"):
        Path(folder).mkdir()
    for number, colour in enumerate(("red", "blue")):
        picture = Image.effect_noise((32, 32), 40 + number).convert("RGB")
        picture.paste(colour, (0, 0, 16, 16))
        picture.save(f"data/{number}.png")
        picture.transpose(Image.Transpose.ROTATE_90).save(f"more/{number}.png")
    Path("data/metadata.csv").write_text(TABLE, encoding="utf-8")
    Path("more/metadata.csv").write_text(TABLE, encoding="utf-8")
    Path("bare").mkdir()
    shutil.copy("more/0.png", "bare/0.png")
    Path("data/one.csv").write_text("\n".join(TABLE.splitlines()[:2]) + "\n", encoding="utf-8")
    cells = ("control_image", "1.png", "0.png")
    controlled = [f"{line},{cell}" for line, cell in zip(TABLE.splitlines(), cells, strict=True)]
    Path("data/control.csv").write_text("\n".join(controlled) + "\n", encoding="utf-8")
    Path("prompts.txt").write_text("a mouse\n", encoding="utf-8")
    Path("accelerate.yaml").write_text("distributed_type: MULTI_GPU\nnum_processes: 2\n", encoding="utf-8")
    Path("outside/metadata.csv").write_text("image,prompt\n../data/0.png,red\n", encoding="utf-8")
    shutil.copy("data/0.png", "twice/0.png")
    Path("twice/metadata.csv").write_text("image,prompt\n0.png,red\n0.png,red\n", encoding="utf-8")
    mask = Image.new("L", (32, 32))
    mask.paste(255, (0, 0, 16, 32))
    mask.save("mask.png")
    frames = [Image.effect_noise((32, 32), 9).convert("RGB") for _ in range(5)]
    frames[0].save("clips/a.gif", save_all=True, append_images=frames[1:], duration=100)
    Path("clips/metadata.csv").write_text("image,prompt\na.gif,noise\n", encoding="utf-8")

    for name, rank in (("train", 4), ("other", 8)):
        words = f"python train.py --dataset_base_path data --lora_base_model dit --lora_rank {rank}"
        Path(f"{name}.sh").write_text(f"{words} --model_paths '{json.dumps(['a'])}'\n", encoding="utf-8")


def _loras() -> None:
    generator = torch.Generator().manual_seed(0)
    config = json.loads(Path("tiny/transformer/config.json").read_text())
    width = config["num_attention_heads"] * config["attention_head_dim"]

    def layer(name: str) -> dict[str, torch.Tensor]:
        shapes = {"lora_A": (2, width), "lora_B": (width, 2)}
        return {
            f"transformer.{name}.{part}.weight": torch.randn(shape, generator=generator)
            for part, shape in shapes.items()
        }

    layers = [layer(f"transformer_blocks.{number}.attn.to_q") for number in range(config["num_layers"])]
    whole = {name: tensor for each in layers for name, tensor in each.items()}
    about = {"family": "qwen-image", "component": "dit", "format_of_keys": "diffusers"}
    save_file(whole, "lora.safetensors", about)
    save_file({**whole, **layer("transformer_blocks.9.attn.to_q")}, "partial.safetensors", about)
    weights = load_file("other/transformer/diffusion_pytorch_model.safetensors")
    part = {name: tensor for name, tensor in weights.items() if name.startswith("proj_out.")}
    save_file(part, "part.safetensors", {"family": "qwen-image", "component": "dit", "kind": "weights"})
    convert(LoraConvertOptions(file="lora.safetensors", to="kohya", model="./tiny", output="named.safetensors"))
    save_file(load_file("named.safetensors"), "kohya.safetensors")  # without the names that our header has


def _controlnets() -> None:
    family = load_family("qwen-image")
    for kind, file in zip(family.controlnets, ("edges", "repair"), strict=False):
        network = randomize(new_network(kind, kind.new_config(family.tiny["dit"]), 0), torch.Generator().manual_seed(0))
        save_file(dict(network.state_dict()), f"{file}.safetensors")


def _templates() -> None:
    write_template(Path("brightness"))
    write_template(Path("words"), WORDS)
    model = load_template(ModelConfig(path="brightness"), Trust(True)).model
    save_file({name: tensor + 1 for name, tensor in model.state_dict().items()}, "brightness.safetensors")
    pack(
        TemplatePackOptions(
            folder="brightness",
            checkpoint="brightness.safetensors",
            output="packed",
            model="./tiny",
            template_inputs='{"scale": 0.5}',
            trust_template=True,
        )
    )


def _runs() -> None:
    for folder, loss in (("run", 1.0), ("again", 2.0)):
        Path(folder).mkdir()
        line = {"step": 1, "loss": loss, "lr": 1e-4, "grad_norm": 1.0, "seconds": 1.0, "samples_per_second": 1.0}
        Path(folder, "metrics.jsonl").write_text(json.dumps({**line, "peak_memory_bytes": 1}) + "\n", encoding="utf-8")
        about = {"command": "train", "options": {"seed": 1}, "given": [], "versions": {}, "hardware": {}}
        Path(folder, "run.json").write_text(json.dumps({**about, "started": "2026"}), encoding="utf-8")
