"""Facts about published weights, taken from their repositories: files, numbers of tensors and of parameters."""

from __future__ import annotations

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
    "Wan-AI/Wan2.1-VACE-1.3B-diffusers": wan_files(2),
    "Wan-AI/Wan2.1-VACE-14B-diffusers": wan_files(14),
    "linoyts/Wan2.2-VACE-Fun-14B-diffusers": wan_files(7, two=True, encoder_in_bfloat16=True),
    "Tongyi-MAI/Z-Image": Z_IMAGE_FILES,
    "Tongyi-MAI/Z-Image-Turbo": Z_IMAGE_FILES,
    "Tongyi-MAI/Z-Image-Omni-Base": Z_IMAGE_OMNI_FILES,
}

# Components with another published size than the defaults of their class, which serves many models.
NOT_THE_DEFAULTS = {("z-image", "vae"), ("flux1", "vae"), ("flux1", "dit")}
NOT_THE_DEFAULTS |= {("qwen-image-layered", "vae"), ("qwen-image-layered", "dit")}
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

# Not compared with the repositories either; the transformer of the second one is all that is used of it.
REPOSITORIES |= {
    "Qwen/Qwen-Image-Layered": QWEN_IMAGE_EDIT_FILES,
    "DiffSynth-Studio/Qwen-Image-Layered-Control": tuple(
        file for file in QWEN_IMAGE_FILES if file.startswith("transformer/")
    ),
}

# Tensors and parameters of the published weights, by family, variant and component. Twice the parameters is the size
# of the files (bfloat16): 40.9 GB for Qwen-Image's transformer, 254 MB for its VAE; 64.4, 7.75 and 18.2 GB for the
# transformers of FLUX.2 dev, klein 4B and klein 9B, 168 MB for their VAE; 12.3 GB and 168 MB for those of Z-Image.
# Those of Wan are counted from the original layer sizes in published_shapes.py, except for its VAEs: 127 M is that of
# Qwen-Image too, and 2.8 GB in float32 are 705 M.
WEIGHTS = {
    ("qwen-image", None, "dit"): (1933, 20_430_401_088),
    ("qwen-image", None, "vae"): (194, 126_892_531),
    ("qwen-image-edit", None, "dit"): (1933, 20_430_401_088),
    ("qwen-image-edit", "2511", "dit"): (1933, 20_430_401_088),
    ("qwen-image-edit", None, "vae"): (194, 126_892_531),
    ("qwen-image-layered", None, "dit"): (1934, 20_430_407_232),
    ("qwen-image-layered", None, "vae"): (194, 126_897_716),
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
    ("wan-vace", None, "dit"): (1331, 17_337_592_896),
    ("wan-vace", "1.3b", "dit"): (1264, 2_153_972_032),
    ("wan-vace", None, "vae"): (194, 126_892_531),
    ("z-image", None, "dit"): (521, 6_154_908_736),
    ("z-image", "omni", "dit"): (551, 6_513_266_880),
    ("z-image", None, "vae"): (244, 83_819_683),
}
