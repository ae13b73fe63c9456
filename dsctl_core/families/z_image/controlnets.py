"""Declare the control networks of Z-Image, and their published weights. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dsctl_core.errors import UsageError
from dsctl_core.family import ControlNet, ControlNetPreset

STEP = 5  # the published network has a block beside every fifth layer of the transformer
PLACES = [0, 5, 10, 15, 20, 25]
SHARED = ("dim", "n_heads", "n_kv_heads")  # with the transformer
EMBEDDER = "control_all_x_embedder.2-1.weight"

Shapes = Mapping[str, tuple[int, ...]]


def new_config(denoiser: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of a new network; raise UsageError for Omni, whose tokens stand in another order."""
    if denoiser.get("siglip_feat_dim") is not None:
        raise UsageError("Z-Image-Omni has no control networks", hint="give z-image or z-image-turbo")
    return {
        **{entry: denoiser[entry] for entry in SHARED},
        "n_refiner_layers": denoiser["n_refiner_layers"],
        "control_in_dim": denoiser["in_channels"],
        "control_layers_places": list(range(0, denoiser["n_layers"], STEP)),
    }


def config_of(shapes: Shapes, config: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return the config of the shapes, and of the config.json what they do not tell: the layers beside the blocks.

    Networks of version 2, which also read a mask and a second picture, are none.
    """
    head, keys = (shapes.get(f"control_layers.0.attention.{name}.weight", ()) for name in ("norm_q", "to_k"))
    embedder = shapes.get(EMBEDDER, ())
    if len(embedder) != 2 or len(head) != 1 or len(keys) != 2:
        return None
    blocks, refiners = (
        next(n for n in range(len(shapes) + 1) if f"{stack}.{n}.attention.to_k.weight" not in shapes)
        for stack in ("control_layers", "control_noise_refiner")
    )
    places = list((config or {}).get("control_layers_places", PLACES))
    steers_refiner = (config or {}).get("add_control_noise_refiner") is not None
    if len(places) != blocks or steers_refiner or "control_noise_refiner.0.after_proj.weight" in shapes:
        return None
    return {
        "dim": embedder[0],
        "n_heads": embedder[0] // head[0],
        "n_kv_heads": keys[0] // head[0],
        "n_refiner_layers": refiners,
        "control_in_dim": embedder[1] // 4,
        "control_layers_places": places,
    }


def starts_from(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the layers of the transformer that the blocks of a new network start from."""
    blocks = {f"control_layers.{n}.": f"layers.{place}." for n, place in enumerate(config["control_layers_places"])}
    return {**blocks, "control_noise_refiner.": "noise_refiner.", "control_all_x_embedder.": "all_x_embedder."}


CONTROLNETS = (
    ControlNet(
        name="union",
        summary="Blocks beside every fifth layer; one network follows edges, depth, poses and more",
        library="diffusers",
        class_name="ZImageControlNetModel",
        control="dsctl_core.families.z_image.control:z_image_control",
        columns=("control_image",),
        new_config=new_config,
        fixed=(*SHARED, "control_in_dim"),
        config_of=config_of,
        presets=(
            ControlNetPreset(
                "z-image-turbo-controlnet-union",
                "follows edges, soft edges, depth, poses or straight lines, on Z-Image-Turbo",
                "PAI/Z-Image-Turbo-Fun-Controlnet-Union",
                "Z-Image-Turbo-Fun-Controlnet-Union.safetensors",
                "Apache-2.0",
            ),
        ),
        starts_from=starts_from,
    ),
)
