"""Let the text encoder, a vision-language model, describe a picture: the prompt where none is given."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from PIL import Image

from dsctl_core.errors import DsctlError
from dsctl_core.families.qwen_image_edit.units import END, PAD, START

if TYPE_CHECKING:
    from dsctl_core.families.qwen_image_layered.pipeline import QwenImageLayeredPipeline

MOST_TOKENS = 512

# The English one of the two questions in diffusers' pipelines/qwenimage/pipeline_qwenimage_layered.py, which the model
# card uses; line breaks included, as the answer depends on each token.
QUESTION = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
    "# Image Annotator\nYou are a professional\nimage annotator. Please write an image caption based on the input "
    "image:\n1. Write the caption using natural,\ndescriptive language without structured formats or rich text.\n"
    "2. Enrich caption details by including: \n - Object\nattributes, such as quantity, color, shape, size, material, "
    "state, position, actions, and so on\n - Vision Relations\nbetween objects, such as spatial relations, functional "
    "relations, possessive relations, attachment relations, action\nrelations, comparative relations, causal "
    "relations, and so on\n - Environmental details, such as weather, lighting,\ncolors, textures, atmosphere, and so "
    "on\n - Identify the text clearly visible in the image, without translation or\nexplanation, and highlight it in "
    "the caption with quotation marks\n3. Maintain authenticity and accuracy:\n - Avoid\ngeneralizations\n - Describe "
    "all visible information in the image, while do not add information not explicitly shown in\nthe image\n"
    f"{START}{{}}{END}<|im_end|>\n<|im_start|>assistant\n"
)


def caption_of(pipe: QwenImageLayeredPipeline, picture: Image.Image) -> str:
    """Return what the text encoder says is on `picture`, an image of the size at which it is decomposed.

    Raises DsctlError for an empty answer.
    """
    pipe.load_models_to_device(("text_encoder",))
    encoder, processor, tokenizer = pipe.component("text_encoder"), pipe.reader("processor"), pipe.reader("tokenizer")
    seen = processor(images=[picture], return_tensors="pt").to(pipe.device)
    count = int(seen["image_grid_thw"].prod()) // processor.merge_size**2
    read = tokenizer([QUESTION.format(PAD * count)], return_tensors="pt").to(pipe.device)
    with torch.no_grad():
        made = encoder.generate(
            input_ids=read.input_ids,
            attention_mask=read.attention_mask,
            pixel_values=seen["pixel_values"],
            image_grid_thw=seen["image_grid_thw"],
            # With the types of tokens, image tokens have positions in two dimensions.
            mm_token_type_ids=(read.input_ids == encoder.config.image_token_id).int(),
            max_new_tokens=MOST_TOKENS,
        )
    answer = tokenizer.decode(
        made[0, read.input_ids.shape[1] :], skip_special_tokens=True, clean_up_tokenization_spaces=False
    ).strip()
    if not answer:
        raise DsctlError("the text encoder has nothing to say about the picture", hint="give a prompt")
    return answer
