"""Stand-ins for the tokenizers and processors of a published model that are not on the disk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dsctl_core.assets import assets_path
from dsctl_core.checkpoint.readers import load_reader

if TYPE_CHECKING:
    from torch import nn

    from dsctl_core.family import Family, PublishedConfig, Reader

# The chat template of a tokenizer that is not on the disk: roles and contents, as most published ones have.
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}"
    "{% else %}{% for part in message.content %}{{ part.text }}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
T5 = ("t5", "umt5")  # types of text encoders
# Entries of a config that name tokens for pictures, and these tokens.
PICTURE_TOKENS = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}


def stand_in(family: Family, reader: Reader, variant: str | None) -> Any | None:
    """Return a reader to use in place of `reader`; None where the config of what it reads for is not known.

    A tokenizer is the embedded one, and an image processor that of the class of the published encoder, with its
    default sizes.
    """
    configs = (family.published_config(name, variant) for name in reader.components)
    known = next((_model_type(config) for config in configs if config is not None), None)
    if reader.kind == "tokenizer":
        # Every text for T5 ends with a token, also an empty one.
        found = load_reader(reader, assets_path("tiny-video" if known in T5 else "tiny") / "tokenizer")
        found.chat_template = CHAT
        return found
    return None if known is None else _image_processor(known)


def _model_type(config: PublishedConfig) -> str:
    import transformers

    found: str = getattr(transformers, config.class_name).config_class.model_type
    return found


def _image_processor(model_type: str) -> Any:
    import transformers
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES

    names = IMAGE_PROCESSOR_MAPPING_NAMES[model_type.removesuffix("_vision_model")]
    return getattr(transformers, names["pil"])()


def use_tokens(model: nn.Module, tokenizer: Any) -> None:
    """Let `model`, which looks for pictures among the tokens, look for those of the stand-in `tokenizer`."""
    config: Any = model.config
    for entry, token in PICTURE_TOKENS.items():
        if hasattr(config, entry):
            setattr(config, entry, tokenizer.convert_tokens_to_ids(token))
