"""Names and shapes of the tensors of published transformers, taken from their repositories."""

from __future__ import annotations

Shapes = dict[str, tuple[int, ...]]

# The tensors of one block of the published Qwen-Image transformer, and of what is around the blocks, as its index
# file has them. D = 3072 is the width.
D = 3072
QWEN_IMAGE_BLOCK = {
    **{f"attn.{name}.weight": (D, D) for name in ("to_q", "to_k", "to_v", "to_out.0", "to_add_out")},
    **{f"attn.{name}.bias": (D,) for name in ("to_q", "to_k", "to_v", "to_out.0", "to_add_out")},
    **{f"attn.add_{name}_proj.weight": (D, D) for name in "qkv"},
    **{f"attn.add_{name}_proj.bias": (D,) for name in "qkv"},
    **{f"attn.norm_{name}.weight": (128,) for name in ("q", "k", "added_q", "added_k")},
    **{f"{stream}_mod.1.weight": (6 * D, D) for stream in ("img", "txt")},
    **{f"{stream}_mod.1.bias": (6 * D,) for stream in ("img", "txt")},
    **{f"{stream}_mlp.net.0.proj.weight": (4 * D, D) for stream in ("img", "txt")},
    **{f"{stream}_mlp.net.0.proj.bias": (4 * D,) for stream in ("img", "txt")},
    **{f"{stream}_mlp.net.2.weight": (D, 4 * D) for stream in ("img", "txt")},
    **{f"{stream}_mlp.net.2.bias": (D,) for stream in ("img", "txt")},
}
QWEN_IMAGE_AROUND = {
    "img_in.weight": (D, 64),
    "img_in.bias": (D,),
    "txt_in.weight": (D, 3584),
    "txt_in.bias": (D,),
    "txt_norm.weight": (3584,),
    "time_text_embed.timestep_embedder.linear_1.weight": (D, 256),
    "time_text_embed.timestep_embedder.linear_1.bias": (D,),
    "time_text_embed.timestep_embedder.linear_2.weight": (D, D),
    "time_text_embed.timestep_embedder.linear_2.bias": (D,),
    "norm_out.linear.weight": (2 * D, D),
    "norm_out.linear.bias": (2 * D,),
    "proj_out.weight": (64, D),
    "proj_out.bias": (64,),
}


def flux1_shapes(channels: int = 64, *, guidance: bool = True) -> Shapes:
    """The tensors of a FLUX.1 transformer: 19 blocks of two streams, then 38 of one, each layer with a bias."""
    width = 3072
    norms = {f"attn.norm_{name}": (128,) for name in "qk"}
    block = {
        **{f"attn.{name}": (width, width) for name in ("to_q", "to_k", "to_v", "to_out.0", "to_add_out")},
        **{f"attn.add_{name}_proj": (width, width) for name in "qkv"},
        **{f"{stream}.net.0.proj": (4 * width, width) for stream in ("ff", "ff_context")},
        **{f"{stream}.net.2": (width, 4 * width) for stream in ("ff", "ff_context")},
        **{f"{name}.linear": (6 * width, width) for name in ("norm1", "norm1_context")},
        **norms,
        **{f"attn.norm_added_{name}": (128,) for name in "qk"},
    }
    single = {
        **{f"attn.to_{name}": (width, width) for name in "qkv"},
        **norms,
        "norm.linear": (3 * width, width),
        "proj_mlp": (4 * width, width),
        "proj_out": (width, 5 * width),
    }
    embedders = {"timestep_embedder": 256, "text_embedder": 768} | ({"guidance_embedder": 256} if guidance else {})
    shapes: Shapes = {
        "x_embedder": (width, channels),
        "context_embedder": (width, 4096),
        "norm_out.linear": (2 * width, width),
        "proj_out": (64, width),
        **{f"time_text_embed.{name}.linear_1": (width, size) for name, size in embedders.items()},
        **{f"time_text_embed.{name}.linear_2": (width, width) for name in embedders},
        **{f"transformer_blocks.{n}.{name}": shape for n in range(19) for name, shape in block.items()},
        **{f"single_transformer_blocks.{n}.{name}": shape for n in range(38) for name, shape in single.items()},
    }
    biases = {f"{name}.bias": shape[:1] for name, shape in shapes.items() if len(shape) == 2}
    return {f"{name}.weight": shape for name, shape in shapes.items()} | biases


def flux2_shapes(width: int, double: int, single: int, text: int, *, guidance: bool) -> Shapes:
    """The tensors of a FLUX.2 transformer: `double` blocks of two streams, then `single` ones of one; no biases."""
    block = {
        **{f"attn.{name}": (width, width) for name in ("to_q", "to_k", "to_v", "to_out.0", "to_add_out")},
        **{f"attn.add_{name}_proj": (width, width) for name in "qkv"},
        **{f"attn.norm_{name}": (128,) for name in ("q", "k", "added_q", "added_k")},
        **{f"{stream}.linear_in": (6 * width, width) for stream in ("ff", "ff_context")},
        **{f"{stream}.linear_out": (width, 3 * width) for stream in ("ff", "ff_context")},
    }
    fused = {
        "attn.to_qkv_mlp_proj": (9 * width, width),
        "attn.to_out": (width, 4 * width),
        "attn.norm_q": (128,),
        "attn.norm_k": (128,),
    }
    embedders = ("timestep_embedder", "guidance_embedder") if guidance else ("timestep_embedder",)
    shapes: Shapes = {
        "x_embedder": (width, 128),
        "context_embedder": (width, text),
        "double_stream_modulation_img.linear": (6 * width, width),
        "double_stream_modulation_txt.linear": (6 * width, width),
        "single_stream_modulation.linear": (3 * width, width),
        "norm_out.linear": (2 * width, width),
        "proj_out": (128, width),
        **{f"time_guidance_embed.{name}.linear_1": (width, 256) for name in embedders},
        **{f"time_guidance_embed.{name}.linear_2": (width, width) for name in embedders},
        **{f"transformer_blocks.{n}.{name}": shape for n in range(double) for name, shape in block.items()},
        **{f"single_transformer_blocks.{n}.{name}": shape for n in range(single) for name, shape in fused.items()},
    }
    return {f"{name}.weight": shape for name, shape in shapes.items()}


def wan_shapes(
    width: int,
    layers: int,
    ffn: int,
    channels: tuple[int, int],
    *,
    sees: bool = False,
    frames: int | None = None,
    vace_blocks: int = 0,
) -> Shapes:
    """The tensors of a Wan transformer, as wan/modules/model.py of the original repository builds them.

    A vace block, as VACE's vace/models/wan/modules/model.py builds it, is a block with a projection behind it, and in
    front of the first.
    """

    def linear(name: str, rows: int, columns: int) -> Shapes:
        return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}

    def norm(name: str, size: int) -> Shapes:
        return {f"{name}.weight": (size,), f"{name}.bias": (size,)}

    block: Shapes = {"scale_shift_table": (1, 6, width), **norm("norm2", width)}
    for attention in ("attn1", "attn2"):
        for name in ("to_q", "to_k", "to_v", "to_out.0"):
            block |= linear(f"{attention}.{name}", width, width)
        block |= {f"{attention}.norm_{name}.weight": (width,) for name in "qk"}
    block |= {**linear("ffn.net.0.proj", ffn, width), **linear("ffn.net.2", width, ffn)}
    around: Shapes = {
        "patch_embedding.weight": (width, channels[0], 1, 2, 2),
        "patch_embedding.bias": (width,),
        "scale_shift_table": (1, 2, width),
        **linear("condition_embedder.time_embedder.linear_1", width, 256),
        **linear("condition_embedder.time_embedder.linear_2", width, width),
        **linear("condition_embedder.time_proj", 6 * width, width),
        **linear("condition_embedder.text_embedder.linear_1", width, 4096),
        **linear("condition_embedder.text_embedder.linear_2", width, width),
        **linear("proj_out", 4 * channels[1], width),
    }
    if sees:
        block |= {**linear("attn2.add_k_proj", width, width), **linear("attn2.add_v_proj", width, width)}
        block["attn2.norm_added_k.weight"] = (width,)
        head = "condition_embedder.image_embedder"
        around |= {**norm(f"{head}.norm1", 1280), **linear(f"{head}.ff.net.0.proj", 1280, 1280)}
        around |= {**linear(f"{head}.ff.net.2", width, 1280), **norm(f"{head}.norm2", width)}
        if frames is not None:
            around[f"{head}.pos_embed"] = (1, 257 * frames, 1280)
    if vace_blocks:
        around |= {"vace_patch_embedding.weight": (width, 96, 1, 2, 2), "vace_patch_embedding.bias": (width,)}
        around |= linear("vace_blocks.0.proj_in", width, width)
    for number in range(vace_blocks):
        own = {**block, **linear("proj_out", width, width)}
        around |= {f"vace_blocks.{number}.{name}": shape for name, shape in own.items()}
    return {**around, **{f"blocks.{n}.{name}": shape for n in range(layers) for name, shape in block.items()}}


def z_image_shapes(siglip: int | None = None) -> Shapes:
    """The tensors of a Z-Image transformer: 30 blocks, and refiners of the image, of the text and of SigLIP's features.

    The blocks of text and features, which have no noise level, are not modulated.
    """
    width, modulation, text = 3840, 256, 2560
    block = {
        **{f"attention.{name}.weight": (width, width) for name in ("to_q", "to_k", "to_v", "to_out.0")},
        **{f"attention.norm_{name}.weight": (128,) for name in "qk"},
        **{f"feed_forward.{name}.weight": (10240, width) for name in ("w1", "w3")},
        "feed_forward.w2.weight": (width, 10240),
        **{f"{part}_norm{n}.weight": (width,) for part in ("attention", "ffn") for n in (1, 2)},
    }
    modulated = {
        **block,
        "adaLN_modulation.0.weight": (4 * width, modulation),
        "adaLN_modulation.0.bias": (4 * width,),
    }
    stacks = {"layers": (30, modulated), "noise_refiner": (2, modulated), "context_refiner": (2, block)}
    shapes: Shapes = {
        "all_x_embedder.2-1.weight": (width, 64),
        "all_x_embedder.2-1.bias": (width,),
        "all_final_layer.2-1.linear.weight": (64, width),
        "all_final_layer.2-1.linear.bias": (64,),
        "all_final_layer.2-1.adaLN_modulation.1.weight": (width, modulation),
        "all_final_layer.2-1.adaLN_modulation.1.bias": (width,),
        "t_embedder.mlp.0.weight": (1024, modulation),
        "t_embedder.mlp.0.bias": (1024,),
        "t_embedder.mlp.2.weight": (modulation, 1024),
        "t_embedder.mlp.2.bias": (modulation,),
        "cap_embedder.0.weight": (text,),
        "cap_embedder.1.weight": (width, text),
        "cap_embedder.1.bias": (width,),
        "x_pad_token": (1, width),
        "cap_pad_token": (1, width),
    }
    if siglip is not None:
        stacks["siglip_refiner"] = (2, block)
        shapes["siglip_embedder.0.weight"] = (siglip,)
        shapes["siglip_embedder.1.weight"] = (width, siglip)
        shapes["siglip_embedder.1.bias"] = (width,)
        shapes["siglip_pad_token"] = (1, width)
    return shapes | {
        f"{stack}.{n}.{name}": shape
        for stack, (count, of) in stacks.items()
        for n in range(count)
        for name, shape in of.items()
    }


SHAPES: dict[tuple[str, str | None, str], Shapes] = {
    ("wan", None, "dit"): wan_shapes(5120, 40, 13824, (16, 16)),
    ("wan", "t2v-1.3b", "dit"): wan_shapes(1536, 30, 8960, (16, 16)),
    ("wan", "i2v-14b", "dit"): wan_shapes(5120, 40, 13824, (36, 16), sees=True),
    ("wan", "flf2v-14b", "dit"): wan_shapes(5120, 40, 13824, (36, 16), sees=True, frames=2),
    ("wan", "i2v-a14b", "dit"): wan_shapes(5120, 40, 13824, (36, 16)),
    ("wan", "ti2v-5b", "dit"): wan_shapes(3072, 30, 14336, (48, 48)),
    ("wan-vace", None, "dit"): wan_shapes(5120, 40, 13824, (16, 16), vace_blocks=8),
    ("wan-vace", "1.3b", "dit"): wan_shapes(1536, 30, 8960, (16, 16), vace_blocks=15),
    ("qwen-image", None, "dit"): {
        **QWEN_IMAGE_AROUND,
        **{f"transformer_blocks.{n}.{name}": s for n in range(60) for name, s in QWEN_IMAGE_BLOCK.items()},
    },
    ("flux1", None, "dit"): flux1_shapes(),
    ("flux1", "schnell", "dit"): flux1_shapes(guidance=False),
    ("flux1", "fill", "dit"): flux1_shapes(384),
    ("flux2", None, "dit"): flux2_shapes(6144, 8, 48, 15360, guidance=True),
    ("flux2", "klein-4b", "dit"): flux2_shapes(3072, 5, 20, 7680, guidance=False),
    ("flux2", "klein-9b", "dit"): flux2_shapes(4096, 8, 24, 12288, guidance=False),
    ("z-image", None, "dit"): z_image_shapes(),
    ("z-image", "omni", "dit"): z_image_shapes(siglip=1152),
}
SHAPES |= {("qwen-image-edit", variant, "dit"): SHAPES["qwen-image", None, "dit"] for variant in (None, "2511")}
# The one of two conditions that every sample has is embedded and added to the timestep.
SHAPES["qwen-image-layered", None, "dit"] = {
    **SHAPES["qwen-image", None, "dit"],
    "time_text_embed.addition_t_embedding.weight": (2, D),
}
