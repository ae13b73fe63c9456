"""The commands that `benchmarks.exact` runs: for each, its words and where its result lies."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.exact_materials import Materials

MODELS = ("tiny", "qwen-image", "flux2", "flux2-dev")
FORMATS = ("diffusers", "comfyui", "kohya", "diffsynth", "peft")
STEPS = 20
SIZE = {"height": 64, "width": 64}
# What each template reads.
TEMPLATE_GIVEN: dict[str, dict[str, Any]] = {
    "kv_cache": {"scale": 0.7},
    "words": {"gain": 0.7},
    "lora": {"strength": 1.5},
    "encoder": {"colour": [0.1, 0.2, 0.3, 0.4]},
}


@dataclass(frozen=True)
class Case:
    """One command: `words` are those after `dsctl`, `output` is what it writes, a folder or a file."""

    name: str
    words: tuple[str, ...]
    output: str


def flags(values: dict[str, Any]) -> tuple[str, ...]:
    """Return values as words: True and False as --x and --no-x, a list as the flag again and again, None not at all."""
    words: list[str] = []
    for name, value in values.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            for each in value if isinstance(value, list) else [] if value is None else [value]:
                words += [f"--{flag}", json.dumps(each) if isinstance(each, dict) else str(each)]
    return tuple(words)


class Commands:
    """Makes the cases of one model."""

    def __init__(self, materials: Materials) -> None:
        self.of = materials
        self.model = {"model": materials.model}

    def out(self, name: str) -> str:
        """Return where the case called `name` puts its result."""
        return f"{self.of.folder}/out/{name}"

    def weights(self, name: str, step: int = STEPS) -> str:
        """Return the file that a training saved last."""
        return f"{self.out(name)}/step-{step}.safetensors"

    def train(self, name: str, data: str | None, task: str = "sft", **more: Any) -> Case:
        """Train, a LoRA of rank 4 unless something else is said."""
        output = more.pop("out", None) or self.out(name)
        values: dict[str, Any] = {"max_steps": STEPS, "save_steps": STEPS // 2, "seed": 3, "learning_rate": 1e-3}
        if data is not None:
            values |= {**self.model, "dataset_base_path": data, **SIZE}
        if not {"lora_rank", "trainable_models", "from_cache"} & set(more):
            values |= {"lora_rank": 4}
        given = flags({**values, **more, "device": "cpu", "output_path": output})
        return Case(name, ("train", task, *given), output)

    def cache(self, name: str, data: str, **more: Any) -> Case:
        """Encode a dataset."""
        values = {**self.model, "dataset_base_path": data, **SIZE, "device": "cpu", "output_path": self.out(name)}
        return Case(name, ("cache", *flags({**values, **more})), self.out(name))

    def infer(self, name: str, **more: Any) -> Case:
        """Make a picture of 64x64 in four steps unless something else is said."""
        values = {**SIZE, "num_inference_steps": 4, "seed": 5, "device": "cpu", "dtype": "float32"}
        prompt = {} if "prompts_file" in more else {"prompt": "a red one"}
        output = self.out(name) + ".png"
        return Case(name, ("infer", *flags({**self.model, **prompt, **values, **more, "output": output})), output)

    def files(self, name: str, command: str, output: str, **more: Any) -> Case:
        """Run a command on files, such as `lora convert`."""
        output = self.out(output)
        return Case(name, (*command.split(), *flags({**more, "output": output})), output)


def cases(materials: Materials) -> Iterator[Case]:
    """Yield the cases of a model, in an order in which each finds what it reads."""
    commands = Commands(materials)
    if materials.name == "flux2-dev":
        yield from guided_network(commands)
        return
    yield from trainings(commands)
    yield from template_trainings(commands)
    yield from pictures(commands)
    yield from lora_files(commands)
    if materials.name == "flux2":
        yield from editing(commands)
    if materials.name == "qwen-image":
        yield from variations(commands)


def trainings(c: Commands) -> Iterator[Case]:
    """Yield LoRAs in every way of reading samples, whole components, and the tasks."""
    rows = c.of.rows
    again = {"dataset_repeat": 10, "from_cache": None}
    yield c.train("lora", rows, cache=False)
    yield c.train("lora-own-cache", rows, dataset_repeat=10)
    yield c.cache("cache", rows)
    yield c.train("lora-from-cache", None, **{**again, "from_cache": c.out("cache"), "lora_rank": 4})
    shapes = {"bucket_resolutions": 64, "height": None, "width": None}
    yield c.train("buckets", c.of.shapes, **shapes, batch_size=2, gradient_accumulation_steps=2, cache=False)
    yield c.train("buckets-own-cache", c.of.shapes, **shapes, batch_size=2, dataset_repeat=10)
    yield c.cache("cache-buckets", c.of.shapes, **shapes, batch_size=2)
    yield c.train("whole", rows, trainable_models="dit", learning_rate=1e-4, cache=False, save_steps=STEPS)
    yield c.train("distill", c.of.distilled, "direct_distill", cache=False)
    yield c.cache("cache-distill", c.of.distilled, task="direct_distill")
    yield c.train("distill-from-cache", None, "direct_distill", from_cache=c.out("cache-distill"), lora_rank=4)
    yield c.train("bf16", rows, mixed_precision="bf16", dataset_repeat=10)
    watched = {"validation_split": 0.25, "validation_every": 5, "ema_decay": 0.9}
    yield c.train("watched", rows, timestep_sampling="logit_normal", logit_mean=0.2, **watched, cache=False)
    sampled = {"sample_prompt": ["a red one", "a dog"], "sample_every": 10, "sample_steps": 2, "sample_cfg_scale": 2}
    yield c.train("sampled", rows, **sampled, sample_height=64, sample_width=64, cache=False)


def template_trainings(c: Commands) -> Iterator[Case]:
    """Yield trainings of templates, in one stage and in two."""
    for kind, folder in c.of.templates.items():
        named = {"template": folder, "trust_template": True, "extra_inputs": "template_inputs"}
        trained = {**named, "trainable_models": "template_model", "learning_rate": 1e-2}
        data = c.of.given
        if kind == "encoder":
            yield c.infer(f"infer-template-{kind}", **shown(kind, folder))
            continue
        yield c.train(f"template-{kind}", data, **trained, cache=False)
        yield c.infer(f"infer-template-{kind}", **shown(kind, f"{folder}:{c.weights(f'template-{kind}')}"))
    folder = c.of.templates["kv_cache"]
    named = {"template": folder, "trust_template": True}
    yield c.cache("cache-template", c.of.given, **named, extra_inputs="template_inputs")
    trained = {"trainable_models": "template_model", "learning_rate": 1e-2, "batch_size": 2}
    yield c.train("template-from-cache", None, **named, **trained, from_cache=c.out("cache-template"))
    weights = c.weights("template-kv_cache")
    packed = {"model": c.of.model, "template_inputs": {"scale": 0.5}, "trust_template": True}
    yield c.files("template-pack", f"template pack {folder}", "template-pack", checkpoint=weights, **packed)


def shown(kind: str, template: str) -> dict[str, Any]:
    """Return the flags that draw with a template of a kind."""
    return {"template": template, "template_inputs": TEMPLATE_GIVEN[kind], "trust_template": True, "cfg_scale": 2}


def pictures(c: Commands) -> Iterator[Case]:
    """Yield pictures in every way of making them."""
    folder, lora = c.of.folder, c.weights("lora")
    yield c.infer("infer", cfg_scale=1)
    yield c.infer("infer-defaults", num_inference_steps=None, dtype=None, prompt="a robot")
    for steps, (width, height) in {1: (64, 64), 7: (96, 64), 3: (128, 128), 12: (32, 48)}.items():
        size = {"width": width, "height": height}
        yield c.infer(f"infer-{steps}-{width}x{height}", num_inference_steps=steps, cfg_scale=1, **size)
    yield c.infer("infer-negative", negative_prompt="grey", cfg_scale=3)
    yield c.infer("infer-lora", lora=f"{lora}:0.7", cfg_scale=2)
    yield c.infer("infer-loras", lora=[f"{lora}:0.7", f"{c.weights('bf16')}:-0.5"], cfg_scale=2)
    yield c.infer("infer-image", input_image=f"{folder}/start.png", denoising_strength=0.6, cfg_scale=2)
    masked = {"input_image": f"{folder}/start.png", "inpaint_mask": f"{folder}/mask.png"}
    yield c.infer("infer-inpaint", **masked, cfg_scale=2)
    yield c.infer("infer-inpaint-some", **masked, denoising_strength=0.5, cfg_scale=2)
    tiled = {"tiled": True, "height": 320, "width": 288, "num_inference_steps": 2, "cfg_scale": 1}
    yield c.infer("infer-tiled", **tiled, input_image=f"{folder}/start.png", denoising_strength=0.9)
    yield c.infer("infer-prompts", prompts_file=f"{folder}/prompts.txt", num_images=2, grid=True, cfg_scale=2)
    yield c.infer("infer-bfloat16", dtype="bfloat16", cfg_scale=2)
    template = f"{c.of.templates['kv_cache']}:{c.weights('template-kv_cache')}"
    yield c.infer("infer-negative-template", **shown("kv_cache", template), negative_template_inputs={"scale": 0.1})
    two = {"template": [template, c.of.templates["words"] + ":" + c.weights("template-words")]}
    inputs = [TEMPLATE_GIVEN["kv_cache"], TEMPLATE_GIVEN["words"]]
    yield c.infer("infer-two-templates", **{**shown("kv_cache", template), **two, "template_inputs": inputs})


def lora_files(c: Commands) -> Iterator[Case]:
    """Yield what is made of the trained LoRAs: other formats, other ranks, merged ones."""
    lora, other = c.weights("lora"), c.weights("bf16")
    for kind in FORMATS:
        suffix = "" if kind == "peft" else ".safetensors"
        yield c.files(f"convert-{kind}", f"lora convert {lora}", f"convert-{kind}{suffix}", to=kind, **c.model)
        back = c.out(f"convert-{kind}{suffix}")
        yield c.files(
            f"convert-{kind}-back", f"lora convert {back}", f"back-{kind}.safetensors", to="diffusers", **c.model
        )
    half = {"to": "diffusers", "lora_dtype": "bfloat16", **c.model}
    yield c.files("convert-bfloat16", f"lora convert {lora}", "converted-bfloat16.safetensors", **half)
    yield c.files("resize", f"lora resize {lora}", "resized.safetensors", rank=2, **c.model)
    both = {"lora": [f"{lora}:0.7", f"{other}:-0.5"], **c.model}
    yield c.files("merge-base", "merge-lora", "merged", **both)
    yield c.files("merge-lora", "merge-lora", "merged.safetensors", into="lora", **both)
    yield c.files("merge-lora-cut", "merge-lora", "cut.safetensors", into="lora", rank=3, **both)
    if c.of.name != "tiny":  # whose folder has a path of its own on every machine
        compared = {"base": c.of.model, "tuned": c.out("merged"), "rank": 4}
        yield c.files("extract", "lora extract", "extracted.safetensors", **compared)


def editing(c: Commands) -> Iterator[Case]:
    """Yield training and pictures with reference pictures."""
    folder = c.of.folder
    given = {"data_file_keys": "image,edit_image", "extra_inputs": "edit_image"}
    yield c.train("edit", c.of.edited, **given, cache=False)
    yield c.cache("cache-edit", c.of.edited, **given)
    yield c.train("edit-from-cache", None, from_cache=c.out("cache-edit"), lora_rank=4, batch_size=2)
    yield c.infer("infer-edit", edit_image=f"{folder}/edit.png", cfg_scale=2)
    two = [f"{folder}/edit.png", f"{folder}/edit2.png"]
    yield c.infer("infer-edit-two", edit_image=two, lora=c.weights("edit"), cfg_scale=2)


def guided_network(c: Commands) -> Iterator[Case]:
    """Yield what differs where guidance is an input of the network."""
    yield c.train("lora", c.of.rows, cache=False)
    yield c.train("distill", c.of.distilled, "direct_distill", cache=False)
    yield c.infer("infer")
    yield c.infer("infer-guidance", embedded_guidance=1.5, lora=c.weights("lora"))
    yield c.infer("infer-edit", edit_image=f"{c.of.folder}/edit.png")


def variations(c: Commands) -> Iterator[Case]:
    """Yield the settings of a training that no family has a say in."""
    rows, lora = c.of.rows, c.weights("lora")
    few: dict[str, Any] = {"cache": False, "max_steps": 8, "save_steps": 8}
    course = {"lr_scheduler": "cosine", "lr_warmup_steps": 3, "weight_decay": 0.1, "max_grad_norm": 0.01}
    yield c.train("dora", rows, **few, use_dora=True, use_rslora=True, lora_alpha=8, lora_dropout=0.1, **course)
    levels = {"timestep_shift": 2, "min_timestep_boundary": 0.2, "max_timestep_boundary": 0.9, "loss_weighting": "none"}
    yield c.train("levels", rows, **few, **levels, caption_dropout=0.3, caption_prefix="zq, ", caption_suffix=" in oil")
    whole = {"trainable_models": "dit", "use_gradient_checkpointing": True}
    yield c.train("checkpointing", rows, **few, **whole, gradient_checkpointing_blocks=1)
    yield c.train("modules", rows, **few, trainable_models="dit.proj_out,dit.transformer_blocks.*.attn")
    yield c.train("text-encoder", rows, **few, lora_rank=2, lora_base_model="text_encoder", lora_target_modules="auto")
    yield c.train("fp8", rows, **few, fp8_models="text_encoder,vae")
    yield c.train("on-a-lora", rows, **few, lora=f"{lora}:0.5")
    yield c.train("from-a-lora", rows, **few, lora_checkpoint=lora)
    yield c.train("as-kohya", rows, **few, lora_rank=2, lora_format="kohya", lora_dtype="bfloat16")
    for optimizer in ("adafactor", "sgd", "torch.optim.RMSprop"):
        yield c.train(f"optimizer-{optimizer}", rows, **few, optimizer=optimizer)
    yield c.train("two-processes", rows, **few, num_processes=2)
    yield c.train("stage-one", rows, "sft:data_process", max_steps=None, save_steps=None, learning_rate=None)
    yield c.train("stage-two", c.out("stage-one"), "sft:train", model=None, height=None, width=None)
    parts = ("transformer/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model")
    named = json.dumps([f"{c.of.model}/{part}.safetensors" for part in parts])
    files = {"model": None, "model_paths": named, "tokenizer_path": f"{c.of.model}/tokenizer"}
    yield c.infer("infer-files", **files, cfg_scale=2)
    yield c.train("stopped", rows, ema_decay=0.9, cache=False, max_steps=10)
    # It goes on in the folder of the case before it, with epochs that it comes into the middle of.
    resumed = {"resume": "latest", "out": c.out("stopped")}
    yield c.train("resumed", rows, ema_decay=0.9, cache=False, **resumed)
