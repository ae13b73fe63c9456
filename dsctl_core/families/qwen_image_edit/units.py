"""Define Qwen-Image-Edit's units: the text encoder reads the prompt together with the reference images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image
from torch import Tensor

from dsctl_core.errors import UsageError
from dsctl_core.families.qwen_image_edit.family import fitted_size, prompt_pixels
from dsctl_core.media.prompts import pad_embeddings
from dsctl_core.media.references import Pictures, by_sample
from dsctl_core.units import Inputs, PipelineUnit

if TYPE_CHECKING:
    from dsctl_core.families.qwen_image_edit.pipeline import QwenImageEditPipeline
    from dsctl_core.pipeline import BasePipeline

# The chat that the models were trained with, as diffusers' pipelines have it. The first PREFIX tokens, most of the
# system prompt, are the same for all prompts and are dropped from the output.
SYSTEM = (
    "<|im_start|>system\nDescribe the key features of the input image (color, shape, size, texture, objects, "
    "background), then explain how the user's text instruction should alter or modify the image. Generate a new image "
    "that meets the user's requirements while maintaining consistency with the original input where appropriate."
    "<|im_end|>\n<|im_start|>user\n"
)
ASSISTANT = "<|im_end|>\n<|im_start|>assistant\n"
START, PAD, END = "<|vision_start|>", "<|image_pad|>", "<|vision_end|>"  # around an image, and each token of it
PREFIX = 64


class PromptWithImagesEmbedder(PipelineUnit):
    """Encode the prompt and the reference images to the last hidden states of the text encoder (2509 and 2511)."""

    output_params = ("prompt_embeds", "prompt_embeds_mask")
    onload_model_names = ("text_encoder",)
    separate_cfg = True
    padded = {"prompt_embeds": "prompt_embeds_mask"}

    def process(
        self, pipe: QwenImageEditPipeline, prompt: str | list[str], edit_image: Pictures | None = None
    ) -> Inputs:
        """Return `prompt_embeds` (B, T, D), and `prompt_embeds_mask`, (B, T) bool or None if nothing is padded.

        `edit_image` is one image or a list of images for all prompts, or a list of images per prompt.
        """
        pipe.load_models_to_device(self.onload_model_names)
        prompts = [prompt] if isinstance(prompt, str) else prompt
        samples = [[]] if edit_image is None else by_sample(edit_image)
        samples = list(samples) * (len(prompts) if len(samples) == 1 else 1)
        if len(samples) != len(prompts):
            raise UsageError(
                f"{len(samples)} lists of reference pictures for {len(prompts)} prompts",
                hint="give one list for all prompts, or one for each",
            )
        texts = [
            self.chat(text, [self.tokens(pipe, image) for image in images])
            for text, images in zip(prompts, samples, strict=True)
        ]
        read = pipe.reader("tokenizer")(texts, padding=True, return_tensors="pt").to(pipe.device)
        # Without the language-model head: its (B, T, 152064) logits are not needed.
        output = pipe.component("text_encoder").model(
            input_ids=read.input_ids,
            attention_mask=read.attention_mask,
            use_cache=False,
            **self._vision(pipe, read.input_ids, [image for images in samples for image in images]),
        )
        hidden, mask = output.last_hidden_state, read.attention_mask.bool()
        embeds, valid = pad_embeddings([row[keep][PREFIX:] for row, keep in zip(hidden, mask, strict=True)])
        return {"prompt_embeds": embeds, "prompt_embeds_mask": valid}

    def _vision(self, pipe: QwenImageEditPipeline, ids: Tensor, images: Sequence[Image.Image]) -> dict[str, Tensor]:
        """Return the inputs of the text encoder for `images`, in the order of their tokens in `ids` (B, T).

        The token types give image tokens positions in two dimensions, with which Qwen2.5-VL was trained
        (arXiv:2502.13923, section 2.1). diffusers 0.42 does not pass them on to transformers 5.
        """
        types = (ids == pipe.component("text_encoder").config.image_token_id).int()
        if int(types.sum()) != sum(self.tokens(pipe, image) for image in images):
            raise UsageError(f"a prompt holds {PAD}, the token of a picture", hint="leave it out of the prompt")
        if not images:
            return {}
        shown = [resized(image, self.pixels(pipe)) for image in images]
        read = pipe.reader("processor")(images=shown, return_tensors="pt").to(pipe.device)
        return {
            "pixel_values": read["pixel_values"],
            "image_grid_thw": read["image_grid_thw"],
            "mm_token_type_ids": types,
        }

    def chat(self, prompt: str, images: Sequence[int]) -> str:
        """Return the text for a prompt with reference images of these numbers of tokens."""
        pictures = (f"Picture {number}: {START}{PAD * count}{END}" for number, count in enumerate(images, 1))
        return f"{SYSTEM}{''.join(pictures)}{prompt}{ASSISTANT}"

    def pixels(self, pipe: BasePipeline) -> int:
        """Return the number of pixels to which the text encoder's images are brought."""
        return prompt_pixels(pipe.parts)

    def tokens(self, pipe: BasePipeline, image: Image.Image) -> int:
        """Return the number of tokens of a reference image, from its size."""
        processor = pipe.reader("processor")
        width, height = fitted_size(*image.size, self.pixels(pipe))
        return processor.get_number_of_image_patches(height, width) // processor.merge_size**2

    def batch_key(self, pipe: BasePipeline, shared: Inputs, posi: Inputs, nega: Inputs) -> list[list[int]]:
        """Return the numbers of tokens: attention over padding uses another kernel, which rounds differently."""
        references = shared.get("edit_image")
        images = [] if references is None else [self.tokens(pipe, image) for image in by_sample(references)[0]]
        prompts = [each for each in (posi.get("prompt"), nega.get("negative_prompt")) if each is not None]
        chats = [[self.chat(text, images) for text in ([p] if isinstance(p, str) else p)] for p in prompts]
        return [[len(ids) for ids in pipe.reader("tokenizer")(each).input_ids] for each in chats]


class PromptWithImageEmbedder(PromptWithImagesEmbedder):
    """Encode the prompt and the one reference image of the first version."""

    def chat(self, prompt: str, images: Sequence[int]) -> str:
        """Return the text for a prompt; raise UsageError for more than one reference image."""
        if len(images) > 1:
            raise UsageError(
                f"{len(images)} reference pictures are given, but this model takes one",
                hint="give one, or use qwen-image-edit-2509 or -2511, which take several",
            )
        return f"{SYSTEM}{''.join(START + PAD * count + END for count in images)}{prompt}{ASSISTANT}"


def resized(image: Image.Image, pixels: int) -> Image.Image:
    """Return an image of about `pixels` pixels with sides that are multiples of 32."""
    return image.resize(fitted_size(*image.size, pixels), Image.Resampling.LANCZOS)
