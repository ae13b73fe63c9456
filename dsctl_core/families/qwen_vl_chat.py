"""Let a text encoder that is a whole Qwen2.5-VL speak about pictures: its processor, and the chat of its training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dsctl_core.checkpoint.processors import for_pictures

if TYPE_CHECKING:
    from dsctl_core.pipeline import BasePipeline

# preprocessor_config.json of Qwen/Qwen2.5-VL-7B-Instruct, for models whose folder has no processor: the numbers of
# pixels between which pictures are scaled. Other values are the defaults of the class.
PIXELS = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 16384}

# The chat of Qwen2.5-VL (its chat_template.json) for messages whose content is a list of pictures and texts.
CHAT = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def processor(pipe: BasePipeline) -> Any:
    """Return the processor of the text encoder of `pipe`: its own for pictures, if the model has one, and its chat."""
    from transformers import Qwen2_5_VLProcessor, Qwen2VLImageProcessorPil

    pictures = pipe.reader("processor") if "processor" in pipe.readers else Qwen2VLImageProcessorPil(size=PIXELS)
    return for_pictures(Qwen2_5_VLProcessor)(pictures, pipe.reader("tokenizer"), chat_template=CHAT)
