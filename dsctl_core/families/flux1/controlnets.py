"""Declare the control networks of FLUX.1: their kinds, and the published weights. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dsctl_core.family import ControlNet, ControlNetPreset

# The modes of InstantX's union network, by their numbers.
MODES = ("canny", "tile", "depth", "blur", "pose", "gray", "lq")
MODE_COUNT = 10  # that the published network has embeddings for
BLOCKS, SINGLE_BLOCKS = 4, 10  # of a new network, as diffusers makes it of a transformer
SHARED = ("in_channels", "attention_head_dim", "num_attention_heads", "joint_attention_dim", "pooled_projection_dim")
AXES = (16, 56, 56)  # of the published transformer, and of the networks for it
FILES = "diffusion_pytorch_model.safetensors"
LICENSE = "FLUX.1 [dev] Non-Commercial License"

Shapes = Mapping[str, tuple[int, ...]]


def _kind(name: str, summary: str, union: bool, presets: tuple[ControlNetPreset, ...]) -> ControlNet:
    """Return a kind of networks; one for several kinds of control pictures has an embedding for each."""

    def new_config(denoiser: Mapping[str, Any]) -> dict[str, Any]:
        return {
            **{entry: denoiser[entry] for entry in SHARED},
            "guidance_embeds": bool(denoiser.get("guidance_embeds", False)),
            "axes_dims_rope": list(denoiser["axes_dims_rope"]),
            "num_layers": min(BLOCKS, denoiser["num_layers"]),
            "num_single_layers": min(SINGLE_BLOCKS, denoiser["num_single_layers"]),
            "num_mode": MODE_COUNT if union else None,
        }

    def config_of(shapes: Shapes, config: Mapping[str, Any] | None, _: Any) -> dict[str, Any] | None:
        """Return the config of the shapes, and of the config.json what they do not tell: the rotary axes."""
        modes = shapes.get("controlnet_mode_embedder.weight")
        pooled = shapes.get("time_text_embed.text_embedder.linear_1.weight", ())
        named = [shapes.get(f"{each}.weight", ()) for each in ("controlnet_x_embedder", "x_embedder")]
        context = shapes.get("context_embedder.weight", ())
        head = next((shape for each, shape in shapes.items() if each.endswith("attn.norm_q.weight")), ())
        if any(len(shape) != 2 for shape in (*named, pooled, context)) or len(head) != 1:
            return None
        if (modes is not None) != union or any(each.startswith("input_hint_block.") for each in shapes):
            return None
        width, channels = named[1]
        counted = {
            entry: next(n for n in range(len(shapes) + 1) if f"{layer}.{n}.weight" not in shapes)
            for entry, layer in (
                ("num_layers", "controlnet_blocks"),
                ("num_single_layers", "controlnet_single_blocks"),
            )
        }
        return {
            "in_channels": channels,
            "attention_head_dim": head[0],
            "num_attention_heads": width // head[0],
            "joint_attention_dim": context[1],
            "pooled_projection_dim": pooled[1],
            "guidance_embeds": "time_text_embed.guidance_embedder.linear_1.weight" in shapes,
            "axes_dims_rope": list((config or {}).get("axes_dims_rope", AXES)),
            **counted,
            "num_mode": None if modes is None else modes[0],
        }

    return ControlNet(
        name=name,
        summary=summary,
        library="diffusers",
        class_name="FluxControlNetModel",
        control="dsctl_core.families.flux1.control:flux1_control",
        columns=("control_image",),
        new_config=new_config,
        fixed=(*SHARED, "axes_dims_rope"),
        config_of=config_of,
        presets=presets,
        starts_from=lambda config: {"": ""},
        modes=MODES if union else (),
        modes_entry="num_mode" if union else "",
    )


CONTROLNETS = (
    _kind(
        "residual",
        "Some blocks of the transformer; follows one kind of control picture",
        False,
        (
            ControlNetPreset(
                "flux1-controlnet-upscaler",
                "adds details to a picture that was scaled up",
                "jasperai/Flux.1-dev-Controlnet-Upscaler",
                FILES,
                LICENSE,
            ),
        ),
    ),
    _kind(
        "union",
        f"The same, for several kinds: #{', #'.join(MODES)}",
        True,
        (
            ControlNetPreset(
                "flux1-controlnet-union",
                "follows a picture of the kind that #MODE names",
                "InstantX/FLUX.1-dev-Controlnet-Union-alpha",
                FILES,
                LICENSE,
            ),
        ),
    ),
)
