"""Declare the control networks of Qwen-Image: their kinds, and the published weights. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dsctl_core.family import ConfigOfWeights, ControlNet, ControlNetPreset

PATCH = 4  # latents of a token
REPOSITORY = "DiffSynth-Studio/Qwen-Image-Blockwise-ControlNet"
BLOCK = "controlnet_blocks.{}.x_rms.weight"

NEW_BLOCKS = 5  # of a new network of InstantX's kind, as the published ones have
SHARED = ("in_channels", "attention_head_dim", "num_attention_heads", "joint_attention_dim")  # with the transformer
AXES = (16, 56, 56)  # of the published transformer, and of the networks for it
INSTANTX = "InstantX/Qwen-Image-ControlNet"

Shapes = Mapping[str, tuple[int, ...]]


def _blockwise(name: str, summary: str, mask: bool, presets: tuple[ControlNetPreset, ...]) -> ControlNet:
    """Return a kind of blockwise networks: with `mask`, the mask is one more channel of the latents."""

    def in_channels(denoiser: Mapping[str, Any]) -> int:
        return int(denoiser["in_channels"]) + (PATCH if mask else 0)

    def new_config(denoiser: Mapping[str, Any]) -> dict[str, Any]:
        dim = denoiser["num_attention_heads"] * denoiser["attention_head_dim"]
        return {"num_layers": denoiser["num_layers"], "in_channels": in_channels(denoiser), "dim": dim}

    return ControlNet(
        name=name,
        summary=summary,
        library="dsctl_core.families.qwen_image.blockwise",
        class_name="QwenImageBlockwiseControlNet",
        control="dsctl_core.families.qwen_image.blockwise:blockwise_control",
        columns=("control_image", "control_mask") if mask else ("control_image",),
        new_config=new_config,
        fixed=("num_layers", "in_channels", "dim"),
        config_of=_blockwise_config(mask),
        presets=presets,
    )


def _blockwise_config(mask: bool) -> ConfigOfWeights:
    def config_of(shapes: Shapes, config: Mapping[str, Any] | None, _: Any) -> dict[str, Any] | None:
        """Return the config that follows from the shapes alone: published files have no config.json."""
        width = shapes.get("img_in.weight", ())
        if BLOCK.format(0) not in shapes or len(width) != 2 or (width[1] == 64 + PATCH) != mask:
            return None
        layers = next(number for number in range(len(shapes) + 1) if BLOCK.format(number) not in shapes)
        return {"num_layers": layers, "in_channels": width[1], "dim": width[0]}

    return config_of


def _union(name: str, summary: str, mask: bool, presets: tuple[ControlNetPreset, ...]) -> ControlNet:
    """Return a kind of networks of InstantX: the first blocks of the transformer, with a layer behind each."""

    def new_config(denoiser: Mapping[str, Any]) -> dict[str, Any]:
        shared = {entry: denoiser[entry] for entry in SHARED}
        axes = list(denoiser["axes_dims_rope"])
        layers = min(NEW_BLOCKS, denoiser["num_layers"])
        return {**shared, "axes_dims_rope": axes, "num_layers": layers, "extra_condition_channels": PATCH * mask}

    def config_of(shapes: Shapes, config: Mapping[str, Any] | None, _: Any) -> dict[str, Any] | None:
        """Return the config of the shapes, and of the config.json what they do not tell: the rotary axes."""
        needed = ("controlnet_x_embedder.weight", "txt_norm.weight", "txt_in.weight", "img_in.weight")
        head = shapes.get("transformer_blocks.0.attn.norm_q.weight", ())
        if any(len(shapes.get(each, ())) != (1 if "norm" in each else 2) for each in needed) or len(head) != 1:
            return None
        extra = shapes["controlnet_x_embedder.weight"][1] - shapes["img_in.weight"][1]
        if extra != PATCH * mask:
            return None
        width, channels = shapes["img_in.weight"]
        last = "controlnet_blocks.{}.weight"
        return {
            "patch_size": 2,
            "in_channels": channels,
            "out_channels": channels // PATCH,
            "num_layers": next(n for n in range(len(shapes) + 1) if last.format(n) not in shapes),
            "attention_head_dim": head[0],
            "num_attention_heads": width // head[0],
            "joint_attention_dim": shapes["txt_in.weight"][1],
            "axes_dims_rope": list((config or {}).get("axes_dims_rope", AXES)),
            "extra_condition_channels": extra,
        }

    return ControlNet(
        name=name,
        summary=summary,
        library="diffusers",
        class_name="QwenImageControlNetModel",
        control="dsctl_core.families.qwen_image.union:union_control",
        columns=("control_image", "control_mask") if mask else ("control_image",),
        new_config=new_config,
        fixed=(*SHARED, "axes_dims_rope"),
        config_of=config_of,
        presets=presets,
        starts_from=lambda config: {"": ""},
    )


def _preset(name: str, summary: str) -> ControlNetPreset:
    return ControlNetPreset(
        f"qwen-image-blockwise-{name.lower()}", summary, f"{REPOSITORY}-{name}", "model.safetensors", "Apache-2.0"
    )


def _instantx(name: str, summary: str) -> ControlNetPreset:
    files = "diffusion_pytorch_model.safetensors"
    return ControlNetPreset(f"qwen-image-controlnet-{name.lower()}", summary, f"{INSTANTX}-{name}", files, "Apache-2.0")


BLOCKWISE = (
    _blockwise(
        "blockwise",
        "A small block beside each block of the transformer; follows a control picture",
        False,
        (_preset("Canny", "follows the edges of a picture"), _preset("Depth", "follows a depth map")),
    ),
    _blockwise(
        "blockwise-inpaint",
        "The same, for a picture of which a mask is painted anew",
        True,
        (_preset("Inpaint", "paints the masked part of a picture anew"),),
    ),
)
UNION = (
    _union(
        "union",
        "Some blocks of the transformer; one network follows edges, soft edges, depth or poses",
        False,
        (_instantx("Union", "follows edges, soft edges, a depth map or a pose"),),
    ),
    _union(
        "union-inpaint",
        "The same, for a picture of which a mask is painted anew",
        True,
        (_instantx("Inpainting", "paints the masked part of a picture anew"),),
    ),
)
CONTROLNETS = (*BLOCKWISE, *UNION)
