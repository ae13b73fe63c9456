"""List the layer names of the original FLUX.1 release, which single files and LoRA files of other tools use."""

from __future__ import annotations

from dsctl_core.family import OriginalNames

# Blocks with a stream each for image and text, then blocks with one stream, whose projections into attention and into
# the feed-forward are one layer (https://github.com/black-forest-labs/flux, model.py; diffusers'
# convert_flux_transformer_checkpoint_to_diffusers). The final modulation has shift and scale in the other order.
DOUBLE, SINGLE = "transformer_blocks.{}", "single_transformer_blocks.{}"
EMBEDDERS = {"time_in": "timestep_embedder", "vector_in": "text_embedder", "guidance_in": "guidance_embedder"}

ORIGINAL_NAMES = OriginalNames(
    # diffusers converts only whole weights of the published widths, so that it cannot verify a file.
    converted_as=None,
    single={
        "double_blocks.{}.img_attn.proj": f"{DOUBLE}.attn.to_out.0",
        "double_blocks.{}.txt_attn.proj": f"{DOUBLE}.attn.to_add_out",
        "double_blocks.{}.img_mlp.0": f"{DOUBLE}.ff.net.0.proj",
        "double_blocks.{}.img_mlp.2": f"{DOUBLE}.ff.net.2",
        "double_blocks.{}.txt_mlp.0": f"{DOUBLE}.ff_context.net.0.proj",
        "double_blocks.{}.txt_mlp.2": f"{DOUBLE}.ff_context.net.2",
        "double_blocks.{}.img_mod.lin": f"{DOUBLE}.norm1.linear",
        "double_blocks.{}.txt_mod.lin": f"{DOUBLE}.norm1_context.linear",
        "single_blocks.{}.linear2": f"{SINGLE}.proj_out",
        "single_blocks.{}.modulation.lin": f"{SINGLE}.norm.linear",
        "img_in": "x_embedder",
        "txt_in": "context_embedder",
        **{f"{old}.in_layer": f"time_text_embed.{new}.linear_1" for old, new in EMBEDDERS.items()},
        **{f"{old}.out_layer": f"time_text_embed.{new}.linear_2" for old, new in EMBEDDERS.items()},
        "final_layer.linear": "proj_out",
        "final_layer.adaLN_modulation.1": "norm_out.linear",
    },
    fused={
        "double_blocks.{}.img_attn.qkv": tuple(f"{DOUBLE}.attn.to_{part}" for part in "qkv"),
        "double_blocks.{}.txt_attn.qkv": tuple(f"{DOUBLE}.attn.add_{part}_proj" for part in "qkv"),
        "single_blocks.{}.linear1": (*(f"{SINGLE}.attn.to_{part}" for part in "qkv"), f"{SINGLE}.proj_mlp"),
    },
    shares={"single_blocks.{}.linear1": (1, 1, 1, 4)},
    swapped=("final_layer.adaLN_modulation.1",),
    ratios={  # layers of the same names in FLUX.2 have others
        **dict.fromkeys(("double_blocks.{}.img_mlp.0", "double_blocks.{}.txt_mlp.0"), (4, 1)),
        **dict.fromkeys(("double_blocks.{}.img_mlp.2", "double_blocks.{}.txt_mlp.2"), (1, 4)),
        "single_blocks.{}.linear1": (7, 1),
        "single_blocks.{}.linear2": (1, 5),
    },
    diffusers_prefix="transformer.",  # behind "diffusion_model." diffusers does not read any layer of its own names
)
