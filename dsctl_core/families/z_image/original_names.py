"""List the layer names of the original Z-Image release, which single files and LoRA files of other tools use."""

from __future__ import annotations

from dsctl_core.family import OriginalNames

# The projections into attention are one layer there, and the embedders have no sizes in their names
# (https://github.com/Tongyi-MAI/Z-Image; diffusers' convert_z_image_transformer_checkpoint_to_diffusers).
STACKS = ("layers", "noise_refiner", "context_refiner", "siglip_refiner")
SAME = ("feed_forward.w1", "feed_forward.w2", "feed_forward.w3", "adaLN_modulation.0")

ORIGINAL_NAMES = OriginalNames(
    single={
        **{f"{stack}.{{}}.attention.out": f"{stack}.{{}}.attention.to_out.0" for stack in STACKS},
        **{f"{stack}.{{}}.{name}": f"{stack}.{{}}.{name}" for stack in STACKS for name in SAME},
        "x_embedder": "all_x_embedder.2-1",
        "final_layer.linear": "all_final_layer.2-1.linear",
        "final_layer.adaLN_modulation.1": "all_final_layer.2-1.adaLN_modulation.1",
        **{name: name for name in ("cap_embedder.1", "siglip_embedder.1", "t_embedder.mlp.0", "t_embedder.mlp.2")},
    },
    fused={
        f"{stack}.{{}}.attention.qkv": tuple(f"{stack}.{{}}.attention.to_{part}" for part in "qkv") for stack in STACKS
    },
)
