"""Tiny random models on disk, in diffusers layout, made by the official classes: for tests of every family."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dsctl_core.families import find_preset, load_family


def write_tiny_model(family_name: str, folder: Path, seed: int = 0) -> Path:
    """Write a tiny random model of the family called `family_name` to `folder`; the same one for the same `seed`."""
    BUILDERS[family_name](folder, seed)
    return folder


def write_tiny_qwen_image(folder: Path, seed: int = 0, name: str = "qwen-image", **schedule: Any) -> Path:
    """Write a tiny random Qwen-Image to `folder`: official classes, the sizes of `family.tiny`, a real tokenizer.

    `name` is the family, and `schedule` are other values of its scheduler_config.json.
    """
    from diffusers import (
        AutoencoderKLQwenImage,
        FlowMatchEulerDiscreteScheduler,
        QwenImagePipeline,
        QwenImageTransformer2DModel,
    )
    from transformers import AutoTokenizer, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    family = load_family(name)
    generator = torch.Generator().manual_seed(seed)
    own = family.schedule
    line = {each: getattr(own, each) for each in ("base_shift", "max_shift", "base_image_seq_len")}
    line |= {each: getattr(own, each) for each in ("max_image_seq_len", "shift_terminal")}
    tokenizer = embedded_tokenizer()
    pipe: Any = QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**{"use_dynamic_shifting": True, **line, **schedule}),
        vae=randomize(AutoencoderKLQwenImage(**family.tiny["vae"]), generator),
        text_encoder=randomize(
            Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**family.tiny["text_encoder"])), generator
        ),
        tokenizer=AutoTokenizer.from_pretrained(str(tokenizer), local_files_only=True),
        transformer=randomize(QwenImageTransformer2DModel(**family.tiny["dit"]), generator),
    )
    pipe.save_pretrained(folder)
    shutil.rmtree(folder / "tokenizer")
    shutil.copytree(tokenizer, folder / "tokenizer")
    return folder


def write_tiny_qwen_image_edit(folder: Path, seed: int = 0, pipeline: str = "QwenImageEditPlusPipeline") -> Path:
    """Write a tiny random Qwen-Image-Edit to `folder`: small reference images, and a processor for its vision tower."""
    write_tiny_qwen_image(folder, seed)
    return _with_processor(folder, {"_class_name": pipeline, "reference_pixels": 64 * 64})


def write_tiny_qwen_image_layered(folder: Path, seed: int = 0) -> Path:
    """Write a tiny random Qwen-Image-Layered to `folder`, with the schedule that is published."""
    write_tiny_qwen_image(folder, seed, "qwen-image-layered", time_shift_type="linear", shift_terminal=False)
    return _with_processor(folder, {"_class_name": "QwenImageLayeredPipeline"})


def _with_processor(folder: Path, entries: dict[str, Any]) -> Path:
    """Add a processor for the vision tower, and `entries` of the model_index.json, to a tiny Qwen-Image."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    shutil.copytree(embedded_tokenizer(), folder / "processor")
    Qwen2VLImageProcessorPil(size={"shortest_edge": 28 * 28, "longest_edge": 56 * 84}).save_pretrained(
        folder / "processor"
    )
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"processor": ["transformers", "Qwen2VLProcessor"], **entries}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


# As the chat templates that the text encoders came with put a prompt, in short.
CHAT_KLEIN = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
CHAT_DEV = (
    "{% for message in messages %}[{{ message.role | upper }}]"
    "{% for part in message.content %}{{ part.text }}{% endfor %}[/{{ message.role | upper }}]{% endfor %}"
)


def write_tiny_flux2(folder: Path, seed: int = 0) -> Path:
    """Write a tiny random FLUX.2 klein (base) to `folder`."""
    from diffusers import Flux2KleinPipeline
    from transformers import Qwen3Config, Qwen3ForCausalLM

    generator = torch.Generator().manual_seed(seed)
    encoder = Qwen3ForCausalLM(Qwen3Config(**load_family("flux2").tiny["text_encoder"]))
    parts = _flux2_parts(generator, encoder, CHAT_KLEIN, guidance=False)
    pipe: Any = Flux2KleinPipeline(**parts, is_distilled=False)
    pipe.save_pretrained(folder)
    return folder


def write_tiny_flux2_dev(folder: Path, seed: int = 0) -> Path:
    """Write a tiny random FLUX.2 dev to `folder`: another text encoder, and guidance as an input."""
    from diffusers import Flux2Pipeline
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration

    generator = torch.Generator().manual_seed(seed)
    text = {**load_family("flux2").tiny["text_encoder"], "model_type": "mistral", "sliding_window": None}
    sees = {
        "model_type": "pixtral",
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "head_dim": 8,
        "image_size": 32,
        "patch_size": 8,
    }
    config = Mistral3Config(text_config=text, vision_config=sees, image_token_index=2046)
    parts = _flux2_parts(generator, Mistral3ForConditionalGeneration(config), CHAT_DEV, guidance=True)
    pipe: Any = Flux2Pipeline(**parts)
    pipe.save_pretrained(folder)
    return folder


def _flux2_parts(generator: torch.Generator, encoder: Any, chat: str, *, guidance: bool) -> dict[str, Any]:
    from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2Transformer2DModel
    from transformers import AutoTokenizer

    tiny = load_family("flux2").tiny
    tokenizer = AutoTokenizer.from_pretrained(str(embedded_tokenizer()), local_files_only=True)
    tokenizer.chat_template = chat
    vae = randomize(AutoencoderKLFlux2(**tiny["vae"]), generator)
    vae.bn.running_mean.copy_(torch.randn(128, generator=generator) * 0.3)
    vae.bn.running_var.copy_(torch.rand(128, generator=generator) + 0.5)
    dit = {**tiny["dit"], "guidance_embeds": guidance}
    return {
        "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0),
        "vae": vae,
        "text_encoder": randomize(encoder, generator),
        "tokenizer": tokenizer,
        "transformer": randomize(Flux2Transformer2DModel(**dit), generator),
    }


def write_tiny_wan(folder: Path, seed: int = 0, kind: str = "t2v") -> Path:
    """Write a tiny random Wan to `folder`, of one of the kinds in WAN_KINDS."""
    from diffusers import WanImageToVideoPipeline, WanPipeline
    from diffusers import WanTransformer3DModel as Transformer
    from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel

    generator = torch.Generator().manual_seed(seed)
    dit, vae, index = WAN_KINDS[kind]
    sizes = {**load_family("wan").tiny["dit"], **dit}
    parts = _wan_parts(generator, lambda: Transformer(**sizes), vae)
    if "boundary_ratio" in index:
        parts["transformer_2"] = randomize(Transformer(**sizes), generator)
    if "image_dim" in dit:
        sees = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
        vision = CLIPVisionConfig(**sees, image_size=32, patch_size=2, hidden_act="gelu")  # 257 tokens
        parts["image_encoder"] = randomize(CLIPVisionModel(vision), generator)
        sides = {"height": 32, "width": 32}
        parts["image_processor"] = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=sides)
    official: Any = WanImageToVideoPipeline if kind[:3] == "i2v" or "flf2v" in kind else WanPipeline
    official(**parts, **index).save_pretrained(folder)
    return folder


def write_tiny_wan_vace(folder: Path, seed: int = 0, two: bool = False) -> Path:
    """Write a tiny random Wan VACE to `folder`: three blocks, and vace blocks beside the first and the last of them.

    With `two` it has two denoisers.
    """
    from diffusers import WanVACEPipeline
    from diffusers import WanVACETransformer3DModel as Transformer

    generator, sizes = torch.Generator().manual_seed(seed), load_family("wan-vace").tiny["dit"]
    parts = _wan_parts(generator, lambda: Transformer(**sizes), {})
    if two:
        parts["transformer_2"] = randomize(Transformer(**sizes), generator)
    official: Any = WanVACEPipeline(**parts, boundary_ratio=0.875 if two else None)
    official.save_pretrained(folder)
    return folder


def _wan_parts(generator: torch.Generator, transformer: Callable[[], Any], vae: dict[str, Any]) -> dict[str, Any]:
    """The parts that every tiny Wan has, as its pipelines call them; `vae` is what differs in the VAE."""
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler
    from transformers import UMT5Config, UMT5EncoderModel

    tiny = load_family("wan").tiny
    latents = {"latents_mean": [0.1] * 48, "latents_std": [0.9] * 48} if vae else {}
    return {
        "transformer": randomize(transformer(), generator),
        "vae": randomize(AutoencoderKLWan(**{**tiny["vae"], **vae, **latents}), generator),
        "text_encoder": randomize(UMT5EncoderModel(UMT5Config(**tiny["text_encoder"])), generator),
        "tokenizer": tokenizer_with_end(),
        "scheduler": UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=3.0
        ),
    }


SEES = {"image_dim": 8, "added_kv_proj_dim": 24}
VAE_2_2 = {
    "z_dim": 48,
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_spatial": 16,
    "decoder_base_dim": 24,
}
# By kind: what differs in the transformer, in the VAE, and in model_index.json.
WAN_KINDS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "t2v": ({}, {}, {}),
    "i2v": ({"in_channels": 36, **SEES}, {}, {}),
    "flf2v": ({"in_channels": 36, **SEES, "pos_embed_seq_len": 514}, {}, {}),
    "t2v-a14b": ({}, {}, {"boundary_ratio": 0.875}),
    "i2v-a14b": ({"in_channels": 36}, {}, {"boundary_ratio": 0.9}),
    "ti2v": ({"in_channels": 48, "out_channels": 48}, VAE_2_2, {"expand_timesteps": True}),
}


def tokenizer_with_end() -> Any:
    """Return the embedded model's tokenizer with an end token after each text, as that of T5 has."""
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(embedded_tokenizer()), local_files_only=True)
    end = tokenizer.eos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, tokenizer.eos_token_id)]
    )
    return tokenizer


def write_tiny_z_image(folder: Path, seed: int = 0, shift: float = 6.0) -> Path:
    """Write a tiny random Z-Image to `folder`; Turbo has another `shift`."""
    from diffusers import ZImagePipeline

    pipe: Any = ZImagePipeline(**_z_image_parts(torch.Generator().manual_seed(seed), shift))
    pipe.save_pretrained(folder)
    return folder


def write_tiny_z_image_omni(folder: Path, seed: int = 0) -> Path:
    """Write a tiny random Z-Image-Omni to `folder`: it also reads reference images."""
    from diffusers import ZImageOmniPipeline
    from transformers import Siglip2ImageProcessor, Siglip2VisionConfig, Siglip2VisionModel

    generator = torch.Generator().manual_seed(seed)
    sizes = {**load_family("z-image").tiny["siglip"], "num_patches": 16}
    pipe: Any = ZImageOmniPipeline(
        **_z_image_parts(generator, 6.0, siglip_feat_dim=sizes["hidden_size"]),
        siglip=randomize(Siglip2VisionModel(Siglip2VisionConfig(**sizes)), generator),
        siglip_processor=Siglip2ImageProcessor(patch_size=16, max_num_patches=16),
    )
    pipe.save_pretrained(folder)
    return folder


def _z_image_parts(generator: torch.Generator, shift: float, **dit: Any) -> dict[str, Any]:
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImageTransformer2DModel
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    tiny = load_family("z-image").tiny
    tokenizer = AutoTokenizer.from_pretrained(str(embedded_tokenizer()), local_files_only=True)
    tokenizer.chat_template = CHAT_KLEIN
    return {
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=shift),
        "vae": randomize(AutoencoderKL(**tiny["vae"]), generator),
        "text_encoder": randomize(Qwen3ForCausalLM(Qwen3Config(**tiny["text_encoder"])), generator),
        "tokenizer": tokenizer,
        "transformer": randomize(ZImageTransformer2DModel(**{**tiny["dit"], **dit}), generator),
    }


def write_tiny_flux1(folder: Path, seed: int = 0, kind: str = "dev") -> Path:
    """Write a tiny random FLUX.1 to `folder`; `kind` is dev, schnell, kontext or fill."""
    import diffusers
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

    generator = torch.Generator().manual_seed(seed)
    tiny = load_family("flux1").tiny
    of_kind = {
        "schnell": {"guidance_embeds": False},
        "fill": {"in_channels": 4 * (16 + 16 + 64), "out_channels": 64},
    }
    letters = [chr(code) for code in range(33, 127)]
    clip = {each: number for number, each in enumerate([*letters, *(f"{each}</w>" for each in letters)])}
    clip |= {"fo": len(clip), "fox</w>": len(clip) + 1}
    clip |= {"<|startoftext|>": len(clip), "<|endoftext|>": len(clip) + 1}
    t5 = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((each, -2.0) for each in ("\u2581", *letters))]
    t5 += [(word, -3.0) for word in ("\u2581a", "\u2581red", "\u2581cat", "fox", "star")]
    shift = {"base_shift": 0.5, "max_shift": 1.15, "shift": 1.0 if kind == "schnell" else 3.0}
    pipeline = {"kontext": diffusers.FluxKontextPipeline, "fill": diffusers.FluxFillPipeline}
    tokenizer_2 = T5Tokenizer(vocab=t5, extra_ids=0, model_max_length=512)
    gated = {"feed_forward_proj": "gated-gelu"}
    sizes = {"vocab_size": len(clip), "eos_token_id": 2, "bos_token_id": 0, "pad_token_id": 1}
    pipe: Any = pipeline.get(kind, diffusers.FluxPipeline)(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=kind != "schnell", **shift),
        vae=randomize(diffusers.AutoencoderKL(**tiny["vae"]), generator),
        text_encoder=randomize(CLIPTextModel(CLIPTextConfig(**tiny["text_encoder"], **sizes)), generator),
        tokenizer=CLIPTokenizer(vocab=clip, merges=[("f", "o"), ("fo", "x</w>")], model_max_length=77),
        text_encoder_2=randomize(
            T5EncoderModel(T5Config(**tiny["text_encoder_2"], **gated, vocab_size=len(t5))), generator
        ),
        tokenizer_2=tokenizer_2,
        transformer=randomize(diffusers.FluxTransformer2DModel(**{**tiny["dit"], **of_kind.get(kind, {})}), generator),
    )
    pipe.save_pretrained(folder)
    if kind == "kontext":
        index = json.loads((folder / "model_index.json").read_text())
        (folder / "model_index.json").write_text(json.dumps({**index, "reference_sizes": FLUX1_SIZES}))
    return folder


FLUX1_SIZES = [[32, 80], [48, 48], [80, 32]]  # of the references of a tiny Kontext, (width, height)


def embedded_tokenizer() -> Path:
    """Return the folder of the embedded model's tokenizer, the only real one that there is without a download."""
    path = find_preset("tiny")[1].local_path()
    assert path is not None
    return path / "tokenizer"


def randomize(model: Any, generator: torch.Generator) -> Any:
    """Give every parameter a random value of a sensible size, so that no layer is an identity and none is silent."""
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            values = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim >= 2:
                values *= 1 / math.sqrt(parameter[0].numel())
            elif name.endswith("bias"):
                values *= 0.1
            else:
                values = 1 + 0.1 * values  # the gain of a norm
            parameter.copy_(values.view(parameter.shape))
    return model.eval()


BUILDERS: dict[str, Callable[[Path, int], Path]] = {
    "qwen-image": write_tiny_qwen_image,
    "qwen-image-edit": write_tiny_qwen_image_edit,
    "qwen-image-layered": write_tiny_qwen_image_layered,
    "flux1": write_tiny_flux1,
    "flux2": write_tiny_flux2,
    "wan": write_tiny_wan,
    "wan-vace": write_tiny_wan_vace,
    "z-image": write_tiny_z_image,
}
