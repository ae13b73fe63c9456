"""Facts about published weights, taken from their repositories: files, numbers of tensors, names and shapes."""

from __future__ import annotations

Shapes = dict[str, tuple[int, ...]]

# What is in the published repositories, without pictures and licences.
QWEN_IMAGE_FILES = (
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/generation_config.json",
    *(f"text_encoder/model-0000{n}-of-00004.safetensors" for n in range(1, 5)),
    "text_encoder/model.safetensors.index.json",
    "tokenizer/added_tokens.json",
    "tokenizer/chat_template.jinja",
    "tokenizer/merges.txt",
    "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
    "transformer/config.json",
    *(f"transformer/diffusion_pytorch_model-0000{n}-of-00009.safetensors" for n in range(1, 10)),
    "transformer/diffusion_pytorch_model.safetensors.index.json",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
)


def flux2_files(transformer: int, text_encoder: int) -> tuple[str, ...]:
    """The files of a FLUX.2 repository in diffusers layout, by its numbers of shards."""
    return (
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/generation_config.json",
        *(f"text_encoder/model-{n:05}-of-{text_encoder:05}.safetensors" for n in range(1, text_encoder + 1)),
        "text_encoder/model.safetensors.index.json",
        "tokenizer/chat_template.jinja",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
        "transformer/config.json",
        *(
            ["transformer/diffusion_pytorch_model.safetensors"]
            if transformer == 1
            else [
                f"transformer/diffusion_pytorch_model-{n:05}-of-{transformer:05}.safetensors"
                for n in range(1, transformer + 1)
            ]
        ),
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    )


def wan_files(
    transformer: int, *, two: bool = False, sees: bool = False, encoder_in_bfloat16: bool = False
) -> tuple[str, ...]:
    """The files of a Wan repository in diffusers layout; T2V 1.3B and TI2V 5B from listings, others from memory."""
    shards = 3 if encoder_in_bfloat16 else 5
    return (
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        *(f"text_encoder/model-{n:05}-of-{shards:05}.safetensors" for n in range(1, shards + 1)),
        "text_encoder/model.safetensors.index.json",
        *(f"tokenizer/{name}" for name in ("special_tokens_map.json", "spiece.model", "tokenizer.json")),
        "tokenizer/tokenizer_config.json",
        *(
            f"{folder}/{name}"
            for folder in ("transformer", *(["transformer_2"] if two else []))
            for name in (
                "config.json",
                "diffusion_pytorch_model.safetensors.index.json",
                *(f"diffusion_pytorch_model-{n:05}-of-{transformer:05}.safetensors" for n in range(1, transformer + 1)),
            )
        ),
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
        *(
            ["image_encoder/config.json", "image_encoder/model.safetensors", "image_processor/preprocessor_config.json"]
            if sees
            else []
        ),
    )


# The five repositories of FLUX.1 differ only in their weights. That all of them have these files was not compared with
# the repositories; their single files in the original layout, which no preset uses, are left out.
FLUX1_FILES = (
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "text_encoder_2/config.json",
    *(f"text_encoder_2/model-0000{n}-of-00002.safetensors" for n in (1, 2)),
    "text_encoder_2/model.safetensors.index.json",
    "tokenizer/merges.txt",
    "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
    "tokenizer_2/special_tokens_map.json",
    "tokenizer_2/spiece.model",
    "tokenizer_2/tokenizer.json",
    "tokenizer_2/tokenizer_config.json",
    "transformer/config.json",
    *(f"transformer/diffusion_pytorch_model-0000{n}-of-00003.safetensors" for n in range(1, 4)),
    "transformer/diffusion_pytorch_model.safetensors.index.json",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
)


# The repositories of Z-Image differ only in their weights. That of Omni is announced: what is listed are the parts that
# diffusers' pipeline of it has, and that its transformer and SigLIP are there.
Z_IMAGE_FILES = (
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/generation_config.json",
    *(f"text_encoder/model-0000{n}-of-00003.safetensors" for n in range(1, 4)),
    "text_encoder/model.safetensors.index.json",
    "tokenizer/merges.txt",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
    "transformer/config.json",
    *(f"transformer/diffusion_pytorch_model-0000{n}-of-00003.safetensors" for n in range(1, 4)),
    "transformer/diffusion_pytorch_model.safetensors.index.json",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
)
Z_IMAGE_OMNI_FILES = (
    *Z_IMAGE_FILES,
    "siglip/config.json",
    "siglip/model.safetensors",
    "siglip_processor/preprocessor_config.json",
)

REPOSITORIES = {
    "Qwen/Qwen-Image": QWEN_IMAGE_FILES,
    "Qwen/Qwen-Image-2512": QWEN_IMAGE_FILES,
    **{f"black-forest-labs/FLUX.1-{n}": FLUX1_FILES for n in ("dev", "schnell", "Krea-dev", "Kontext-dev", "Fill-dev")},
    "black-forest-labs/FLUX.2-klein-4B": flux2_files(1, 2),
    "black-forest-labs/FLUX.2-klein-base-4B": flux2_files(1, 2),
    "black-forest-labs/FLUX.2-klein-9B": flux2_files(2, 4),
    "black-forest-labs/FLUX.2-klein-base-9B": flux2_files(2, 4),
    "black-forest-labs/FLUX.2-dev": flux2_files(7, 10),
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": wan_files(2),
    "Wan-AI/Wan2.1-T2V-14B-Diffusers": wan_files(12),
    "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers": wan_files(14, sees=True),
    "Wan-AI/Wan2.1-I2V-14B-720P-Diffusers": wan_files(14, sees=True),
    "Wan-AI/Wan2.1-FLF2V-14B-720P-diffusers": wan_files(14, sees=True),
    "Wan-AI/Wan2.2-T2V-A14B-Diffusers": wan_files(12, two=True, encoder_in_bfloat16=True),
    "Wan-AI/Wan2.2-I2V-A14B-Diffusers": wan_files(12, two=True, encoder_in_bfloat16=True),
    "Wan-AI/Wan2.2-TI2V-5B-Diffusers": wan_files(5, encoder_in_bfloat16=True),
    "Tongyi-MAI/Z-Image": Z_IMAGE_FILES,
    "Tongyi-MAI/Z-Image-Turbo": Z_IMAGE_FILES,
    "Tongyi-MAI/Z-Image-Omni-Base": Z_IMAGE_OMNI_FILES,
}

# Components with another published size than the defaults of their class, which serves many models.
NOT_THE_DEFAULTS = {("z-image", "vae"), ("flux1", "vae"), ("flux1", "dit")}
# As in the repositories of Qwen-Image, with the processor of the vision tower. That these files are in all three was
# not compared with the repositories.
QWEN_IMAGE_EDIT_FILES = (
    *QWEN_IMAGE_FILES,
    "processor/added_tokens.json",
    "processor/chat_template.jinja",
    "processor/merges.txt",
    "processor/preprocessor_config.json",
    "processor/special_tokens_map.json",
    "processor/tokenizer.json",
    "processor/tokenizer_config.json",
    "processor/vocab.json",
)
REPOSITORIES |= {f"Qwen/Qwen-Image-Edit{version}": QWEN_IMAGE_EDIT_FILES for version in ("", "-2509", "-2511")}

# Tensors and parameters of the published weights, by family, variant and component. Twice the parameters is the size
# of the files (bfloat16): 40.9 GB for Qwen-Image's transformer, 254 MB for its VAE; 64.4, 7.75 and 18.2 GB for the
# transformers of FLUX.2 dev, klein 4B and klein 9B, 168 MB for their VAE; 12.3 GB and 168 MB for those of Z-Image.
# Those of Wan are counted from the original layer sizes below, except for its VAEs: 127 M is that of Qwen-Image too,
# and 2.8 GB in float32 are 705 M.
WEIGHTS = {
    ("qwen-image", None, "dit"): (1933, 20_430_401_088),
    ("qwen-image", None, "vae"): (194, 126_892_531),
    ("qwen-image-edit", None, "dit"): (1933, 20_430_401_088),
    ("qwen-image-edit", "2511", "dit"): (1933, 20_430_401_088),
    ("qwen-image-edit", None, "vae"): (194, 126_892_531),
    ("flux1", None, "dit"): (1160, 11_901_408_320),
    ("flux1", "schnell", "dit"): (1156, 11_891_178_560),
    ("flux1", "fill", "dit"): (1160, 11_902_391_360),
    ("flux1", None, "vae"): (244, 83_819_683),
    ("flux2", None, "dit"): (331, 32_223_281_152),
    ("flux2", "klein-4b", "dit"): (169, 3_875_544_576),
    ("flux2", "klein-9b", "dit"): (233, 9_078_581_248),
    ("flux2", None, "vae"): (251, 84_046_372),
    ("wan", None, "dit"): (1095, 14_288_491_584),
    ("wan", "t2v-1.3b", "dit"): (825, 1_418_996_800),
    ("wan", "i2v-14b", "dit"): (1303, 16_394_878_784),
    ("wan", "flf2v-14b", "dit"): (1304, 16_395_536_704),
    ("wan", "i2v-a14b", "dit"): (1095, 14_288_901_184),
    ("wan", "ti2v-5b", "dit"): (825, 4_999_787_712),
    ("wan", None, "vae"): (194, 126_892_531),
    ("wan", "ti2v-5b", "vae"): (196, 704_688_668),
    ("z-image", None, "dit"): (521, 6_154_908_736),
    ("z-image", "omni", "dit"): (551, 6_513_266_880),
    ("z-image", None, "vae"): (244, 83_819_683),
}

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
    width: int, layers: int, ffn: int, channels: tuple[int, int], *, sees: bool = False, frames: int | None = None
) -> Shapes:
    """The tensors of a Wan transformer, as wan/modules/model.py of the original repository builds them."""

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
