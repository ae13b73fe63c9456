"""List the layer names of the original FLUX.2 release, which LoRA files of other tools use."""

from __future__ import annotations

from dsctl_core.family import OriginalNames

# A transformer with double-stream blocks (image and text) followed by single-stream blocks
# (https://github.com/black-forest-labs/flux2, model.py). The modulation of the output is left out, because its halves
# are in another order there.
ORIGINAL_NAMES = OriginalNames(
    converted_as="Flux2Transformer2DModel",
    single={
        "double_blocks.{}.img_attn.proj": "transformer_blocks.{}.attn.to_out.0",
        "double_blocks.{}.txt_attn.proj": "transformer_blocks.{}.attn.to_add_out",
        "double_blocks.{}.img_mlp.0": "transformer_blocks.{}.ff.linear_in",
        "double_blocks.{}.img_mlp.2": "transformer_blocks.{}.ff.linear_out",
        "double_blocks.{}.txt_mlp.0": "transformer_blocks.{}.ff_context.linear_in",
        "double_blocks.{}.txt_mlp.2": "transformer_blocks.{}.ff_context.linear_out",
        "single_blocks.{}.linear1": "single_transformer_blocks.{}.attn.to_qkv_mlp_proj",
        "single_blocks.{}.linear2": "single_transformer_blocks.{}.attn.to_out",
        "img_in": "x_embedder",
        "txt_in": "context_embedder",
        "time_in.in_layer": "time_guidance_embed.timestep_embedder.linear_1",
        "time_in.out_layer": "time_guidance_embed.timestep_embedder.linear_2",
        "guidance_in.in_layer": "time_guidance_embed.guidance_embedder.linear_1",
        "guidance_in.out_layer": "time_guidance_embed.guidance_embedder.linear_2",
        "double_stream_modulation_img.lin": "double_stream_modulation_img.linear",
        "double_stream_modulation_txt.lin": "double_stream_modulation_txt.linear",
        "single_stream_modulation.lin": "single_stream_modulation.linear",
        "final_layer.linear": "proj_out",
    },
    fused={
        f"double_blocks.{{}}.{stream}_attn.qkv": tuple(f"transformer_blocks.{{}}.attn.{part}" for part in parts)
        for stream, parts in (("img", ("to_q", "to_k", "to_v")), ("txt", ("add_q_proj", "add_k_proj", "add_v_proj")))
    },
    ratios={  # layers of the same names in FLUX.1 have others
        **dict.fromkeys(("double_blocks.{}.img_mlp.0", "double_blocks.{}.txt_mlp.0"), (6, 1)),
        **dict.fromkeys(("double_blocks.{}.img_mlp.2", "double_blocks.{}.txt_mlp.2"), (1, 3)),
        "single_blocks.{}.linear1": (9, 1),
        "single_blocks.{}.linear2": (1, 4),
    },
)
