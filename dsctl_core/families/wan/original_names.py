"""List the layer names of the original Wan release, which LoRA files of other tools use."""

from __future__ import annotations

from dsctl_core.family import OriginalNames

# https://github.com/Wan-Video/Wan2.2, wan/modules/model.py. Self-attention is before cross-attention there too, but the
# norms are called after the order of their definition: `norm3` is that of cross-attention, diffusers' `norm2`.
ATTENTION = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0"}
ORIGINAL_NAMES = OriginalNames(
    converted_as="WanTransformer3DModel",
    single={
        **{f"blocks.{{}}.self_attn.{old}": f"blocks.{{}}.attn1.{new}" for old, new in ATTENTION.items()},
        **{f"blocks.{{}}.cross_attn.{old}": f"blocks.{{}}.attn2.{new}" for old, new in ATTENTION.items()},
        "blocks.{}.cross_attn.k_img": "blocks.{}.attn2.add_k_proj",
        "blocks.{}.cross_attn.v_img": "blocks.{}.attn2.add_v_proj",
        "blocks.{}.ffn.0": "blocks.{}.ffn.net.0.proj",
        "blocks.{}.ffn.2": "blocks.{}.ffn.net.2",
        "time_embedding.0": "condition_embedder.time_embedder.linear_1",
        "time_embedding.2": "condition_embedder.time_embedder.linear_2",
        "time_projection.1": "condition_embedder.time_proj",
        "text_embedding.0": "condition_embedder.text_embedder.linear_1",
        "text_embedding.2": "condition_embedder.text_embedder.linear_2",
        "img_emb.proj.1": "condition_embedder.image_embedder.ff.net.0.proj",
        "img_emb.proj.3": "condition_embedder.image_embedder.ff.net.2",
        "head.head": "proj_out",
    },
    fused={},
    in_diffsynth=True,  # diffsynth/models/wan_video_dit.py
    diffusers_prefix="transformer.",  # behind "diffusion_model." diffusers expects the names of this list
)
