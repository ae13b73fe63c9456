"""Declare the control networks of Z-Image, and their published weights. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from dsctl_core.errors import UsageError
from dsctl_core.family import ControlNet, ControlNetPreset

STEP, STEP_2 = 5, 2  # published networks have a block beside every fifth, or of version 2 every second layer
# The layers beside the blocks of published files, which have no config.json, by the number of blocks.
PLACES = {6: range(0, 30, 5), 15: range(0, 30, 2), 3: range(0, 30, 10)}
SHARED = ("dim", "n_heads", "n_kv_heads")  # with the transformer
EMBEDDER = "control_all_x_embedder.2-1.weight"
# Of version 2: what steers the refiner, as diffusers calls it, and the first layer of the blocks for it.
OWN_BLOCKS, MAIN_BLOCKS = "control_noise_refiner", "control_layers"
FOR_REFINER = "control_noise_refiner.0.before_proj.weight"

Shapes = Mapping[str, tuple[int, ...]]


def channels_2(latents: int) -> int:
    """Return the channels that version 2 reads: control latents, one of a mask, and latents of a second picture."""
    return 2 * latents + 1


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


def new_config_2(denoiser: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of a new network of version 2, built as the published ones of 2.1 are."""
    return {
        **new_config(denoiser),
        "control_in_dim": channels_2(denoiser["in_channels"]),
        "control_layers_places": list(range(0, denoiser["n_layers"], STEP_2)),
        "control_refiner_layers_places": list(range(denoiser["n_refiner_layers"])),
        "add_control_noise_refiner": OWN_BLOCKS,
    }


def config_of(shapes: Shapes, config: Mapping[str, Any] | None, _: Any) -> dict[str, Any] | None:
    """Return the config of the shapes, and of the config.json what they do not tell: the layers beside the blocks."""
    found = _sizes(shapes, config)
    steered = (config or {}).get("add_control_noise_refiner") is not None or FOR_REFINER in shapes
    return None if found is None or steered else {**found, "n_refiner_layers": _count(shapes, OWN_BLOCKS)}


def config_of_2(shapes: Shapes, config: Mapping[str, Any] | None, is_zero: Callable[[str], bool]) -> Any:
    """Return the config of a network of version 2, or None.

    Without a config.json, 2.0 and 2.1 differ in their values alone. The authors' 2.0 lets the main blocks steer the
    refiner, and its file has blocks for that which were never trained: their first layer is zero, as diffusers tells
    them too (diffusers/loaders/single_file_utils.py).
    """
    found, stored = _sizes(shapes, config), config or {}
    if found is None or found["control_in_dim"] % 2 == 0:
        return None
    trained = FOR_REFINER in shapes and ("add_control_noise_refiner" in stored or not is_zero(FOR_REFINER))
    steering = stored.get("add_control_noise_refiner", OWN_BLOCKS if trained else MAIN_BLOCKS)
    if steering not in (OWN_BLOCKS, MAIN_BLOCKS) or (steering == OWN_BLOCKS and FOR_REFINER not in shapes):
        return None
    refiners = _count(shapes, OWN_BLOCKS) or int(stored.get("n_refiner_layers", 2))
    return {
        **found,
        "n_refiner_layers": refiners,
        "control_refiner_layers_places": list(stored.get("control_refiner_layers_places") or range(refiners)),
        "add_control_noise_refiner": steering,
    }


def _sizes(shapes: Shapes, config: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return the part of the config that all versions have, without the number of refiners, or None."""
    head, keys = (shapes.get(f"control_layers.0.attention.{name}.weight", ()) for name in ("norm_q", "to_k"))
    embedder, blocks = shapes.get(EMBEDDER, ()), _count(shapes, MAIN_BLOCKS)
    if len(embedder) != 2 or len(head) != 1 or len(keys) != 2:
        return None
    places = list((config or {}).get("control_layers_places", PLACES.get(blocks, ())))
    if len(places) != blocks:
        return None
    return {
        "dim": embedder[0],
        "n_heads": embedder[0] // head[0],
        "n_kv_heads": keys[0] // head[0],
        "control_in_dim": embedder[1] // 4,
        "control_layers_places": places,
    }


def _count(shapes: Shapes, stack: str) -> int:
    return next(n for n in range(len(shapes) + 1) if f"{stack}.{n}.attention.to_k.weight" not in shapes)


def starts_from(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the layers of the transformer that the blocks of a new network start from."""
    blocks = {f"control_layers.{n}.": f"layers.{place}." for n, place in enumerate(config["control_layers_places"])}
    return {**blocks, "control_noise_refiner.": "noise_refiner.", "control_all_x_embedder.": "all_x_embedder."}


def leaves_out(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the blocks of a file of 2.0 that were never trained, and that the network does not have."""
    return (f"{OWN_BLOCKS}.",) if config["add_control_noise_refiner"] == MAIN_BLOCKS else ()


def _version_2(name: str, summary: str, columns: tuple[str, ...], **more: Any) -> ControlNet:
    return ControlNet(
        name=name,
        summary=summary,
        library="diffusers",
        class_name="ZImageControlNetModel",
        control="dsctl_core.families.z_image.control:z_image_control_2",
        columns=columns,
        new_config=new_config_2,
        fixed=(*SHARED, "control_in_dim"),
        config_of=config_of_2,
        starts_from=starts_from,
        leaves_out=leaves_out,
        **more,
    )


def _preset_2(name: str, summary: str, repository: str, file: str = "", **config: Any) -> ControlNetPreset:
    """Return published weights of version 2: the file `file` (default: that of the repository's name)."""
    files = f"{file or repository}.safetensors"
    return ControlNetPreset(name, summary, f"PAI/{repository}", files, "Apache-2.0", config)


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
    _version_2(
        "union-2",
        "Blocks beside every second layer and for the refiner; can also paint a masked part anew (#inpaint)",
        ("control_image",),
        uses={"inpaint": "union-2-inpaint"},
        presets=(
            _preset_2(
                "z-image-turbo-controlnet-union-2.0",
                "version 2.0, on Z-Image-Turbo",
                "Z-Image-Turbo-Fun-Controlnet-Union-2.0",
                add_control_noise_refiner=MAIN_BLOCKS,
            ),
            _preset_2(
                "z-image-turbo-controlnet-union-2.1",
                "version 2.1 for 8 steps, on Z-Image-Turbo",
                "Z-Image-Turbo-Fun-Controlnet-Union-2.1",
                "Z-Image-Turbo-Fun-Controlnet-Union-2.1-2602-8steps",
            ),
            _preset_2(
                "z-image-turbo-controlnet-union-2.1-lite",
                "version 2.1 for 8 steps with three blocks, on Z-Image-Turbo",
                "Z-Image-Turbo-Fun-Controlnet-Union-2.1",
                "Z-Image-Turbo-Fun-Controlnet-Union-2.1-lite-2602-8steps",
                control_layers_places=list(PLACES[3]),
            ),
            _preset_2(
                "z-image-controlnet-union-2.1",
                "version 2.1, on Z-Image",
                "Z-Image-Fun-Controlnet-Union-2.1",
            ),
        ),
    ),
    _version_2(
        "union-2-inpaint",
        "The same, which also paints the masked part of the input image anew",
        ("control_image", "control_mask"),
        masks_input=True,
    ),
)
