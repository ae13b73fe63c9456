"""Define Wan's units: the prompt, the frames that a clip is to contain, and what the image encoder makes of them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.families.wan.family import FLF2V, I2V, KIND_FRAMES, TEXT_TOKENS, TI2V
from dsctl_core.families.wan.text import cleaned
from dsctl_core.family import FrameInputs
from dsctl_core.media.prompts import pad_embeddings
from dsctl_core.media.units import check_picture
from dsctl_core.units import Inputs, PipelineUnit

if TYPE_CHECKING:
    from dsctl_core.families.wan.pipeline import WanPipeline
    from dsctl_core.pipeline import BasePipeline

logger = logging.getLogger(__name__)

Pictures = Image.Image | Sequence[Image.Image | None] | None  # one for all samples, or one per sample


class PromptEmbedder(PipelineUnit):
    """Encode the prompt to the last hidden states of the text encoder."""

    output_params = ("prompt_embeds", "prompt_embeds_mask")
    onload_model_names = ("text_encoder",)
    separate_cfg = True
    padded = {"prompt_embeds": "prompt_embeds_mask"}

    def process(self, pipe: WanPipeline, prompt: str | list[str]) -> Inputs:
        """Return `prompt_embeds` (B, T, D), T at most 512, and `prompt_embeds_mask`, (B, T) bool or None.

        Padding is zero. The transformer also attends to zeros, up to 512 tokens; `model_fn` adds them.
        """
        pipe.load_models_to_device(self.onload_model_names)
        texts, rows = _texts(prompt), []
        # On a CPU a product of few rows uses another algorithm than one of many, which rounds differently.
        for portion in [[text] for text in texts] if pipe.device.type == "cpu" else [texts]:
            tokens = pipe.reader("tokenizer")(
                portion, padding=True, truncation=True, max_length=TEXT_TOKENS, return_tensors="pt"
            )
            mask = tokens.attention_mask.to(pipe.device)
            output = pipe.component("text_encoder")(input_ids=tokens.input_ids.to(pipe.device), attention_mask=mask)
            rows += [row[keep] for row, keep in zip(output.last_hidden_state, mask.bool(), strict=True)]
        _warn_of_cut_prompts(pipe, texts, [len(row) for row in rows])
        embeds, valid = pad_embeddings(rows)
        return {"prompt_embeds": embeds, "prompt_embeds_mask": valid}

    def batch_key(self, pipe: BasePipeline, shared: Inputs, posi: Inputs, nega: Inputs) -> list[list[int]]:
        """Return the numbers of tokens: attention over padding rounds differently."""
        prompts = [each for each in (posi.get("prompt"), nega.get("negative_prompt")) if each is not None]
        read = [pipe.reader("tokenizer")(_texts(each), truncation=True, max_length=TEXT_TOKENS) for each in prompts]
        return [[len(ids) for ids in each.input_ids] for each in read]


def _texts(prompt: str | list[str]) -> list[str]:
    return [cleaned(each) for each in ([prompt] if isinstance(prompt, str) else prompt)]


def _warn_of_cut_prompts(pipe: WanPipeline, texts: list[str], lengths: list[int]) -> None:
    for text, length in zip(texts, lengths, strict=True):
        if length >= TEXT_TOKENS:
            actual = len(pipe.reader("tokenizer")(text).input_ids)
            if actual > TEXT_TOKENS:
                logger.warning("a prompt of %d tokens is cut to %d, the most that the model takes", actual, TEXT_TOKENS)


class ConditionEmbedder(PipelineUnit):
    """Encode the first frame, and the last one if it is given, of a model with a condition in its input channels."""

    output_params = ("condition",)
    onload_model_names = ("vae",)

    def process(
        self,
        pipe: WanPipeline,
        height: int,
        width: int,
        num_frames: int,
        input_image: Pictures = None,
        end_image: Pictures = None,
        tiled: bool = False,
        tile_size: int | None = None,
        tile_stride: int | None = None,
    ) -> Inputs:
        """Return `condition` (B or 1, 20, t, h, w), or None for a model without it.

        Four channels are the mask, 1 for frames that are given, and 16 the latents of a clip with the given
        frames, the others being mid-grey.

        Args:
            pipe: The pipeline.
            height: Height of the frames in pixels.
            width: Width of the frames in pixels.
            num_frames: Number of frames of the clip.
            input_image: The first frame, or one per sample.
            end_image: The last frame, or one per sample.
            tiled: Whether the VAE works in tiles.
            tile_size: Size of a tile in pixels (None: the default of the VAE).
            tile_stride: Distance of tiles in pixels (None: the default of the VAE).
        """
        check_frames(pipe.kind, num_frames, input_image, end_image)
        if pipe.kind not in (I2V, FLF2V):
            return {"condition": None}
        given = {0: _listed(input_image)} | ({} if end_image is None else {num_frames - 1: _listed(end_image)})
        count = len(given[0])
        clips = torch.zeros(count, 3, num_frames, height, width)
        known = torch.zeros(num_frames)
        for number, pictures in given.items():
            what = "input image" if number == 0 else "end image"
            clips[:, :, number] = torch.cat([pipe.preprocess_image(_fitting(what, p, height, width)) for p in pictures])
            known[number] = 1
        latents = pipe.encode_pixels(clips, tiled, tile_size, tile_stride)
        # The first frame is one latent frame, so it counts four times; each further latent frame is four frames.
        channels = torch.cat([known[:1].expand(4), known[1:]]).view(-1, 4).T.to(latents)
        mask = channels[None, :, :, None, None].expand(count, -1, -1, *latents.shape[-2:])
        return {"condition": torch.cat([mask, latents], dim=1)}


class FirstFrameEmbedder(PipelineUnit):
    """Encode the first frame for a model that reads it in place of the first latent frame, and takes it as clean."""

    output_params = ("first_latents", "given_frames", "loss_mask")
    onload_model_names = ("vae",)

    def process(
        self,
        pipe: WanPipeline,
        height: int,
        width: int,
        num_frames: int,
        input_image: Pictures = None,
        tiled: bool = False,
        tile_size: int | None = None,
        tile_stride: int | None = None,
    ) -> Inputs:
        """Return what is known of the first frame, or None for all of it without an `input_image`.

        That is `first_latents` (B or 1, 48, 1, h, w), zeros for a sample without a first frame; `given_frames`
        (B or 1, 1, t, 1, 1) bool, true for the first latent frame of samples with one; and `loss_mask`, of the same
        shape, 0 there and 1 elsewhere. A clip of a single frame, a picture, is never given.

        Args:
            pipe: The pipeline.
            height: Height of the frames in pixels.
            width: Width of the frames in pixels.
            num_frames: Number of frames of the clip.
            input_image: The first frame, or one per sample, None for a sample without.
            tiled: Whether the VAE works in tiles.
            tile_size: Size of a tile in pixels (None: the default of the VAE).
            tile_stride: Distance of tiles in pixels (None: the default of the VAE).
        """
        if pipe.kind != TI2V or input_image is None:
            return dict.fromkeys(self.output_params)
        pictures = [None if num_frames == 1 else picture for picture in _listed(input_image)]
        space = pipe.latent_space
        shape = space.latent_shape(height, width)
        found = torch.zeros(len(pictures), *shape, device=pipe.device)
        for number, picture in enumerate(pictures):
            if picture is not None:
                fitting = _fitting("input image", picture, height, width)
                found[number] = pipe.encode_pictures([fitting], tiled, tile_size, tile_stride)[0]
        given = torch.zeros(len(pictures), 1, space.latent_frames(num_frames), 1, 1, dtype=torch.bool)
        given[:, :, 0] = torch.tensor([picture is not None for picture in pictures]).view(-1, 1, 1, 1)
        given = given.to(pipe.device)
        return {"first_latents": found, "given_frames": given, "loss_mask": (~given).float()}


class ImageEmbedder(PipelineUnit):
    """Encode the given frames with the image encoder, for models that have one."""

    output_params = ("image_embeds",)
    onload_model_names = ("image_encoder",)

    def process(self, pipe: WanPipeline, input_image: Pictures = None, end_image: Pictures = None) -> Inputs:
        """Return `image_embeds` (B or 1, 1 or 2, 257, 1280), the second last hidden state of each frame, or None."""
        if not pipe.has("image_encoder"):
            return {"image_embeds": None}
        pipe.load_models_to_device(self.onload_model_names)
        encoder, processor = pipe.component("image_encoder"), pipe.reader("image_processor")
        frames = []
        for pictures in (input_image, end_image):
            if pictures is not None:
                pixels = processor(images=_listed(pictures), return_tensors="pt").pixel_values
                states = encoder(pixels.to(pipe.device, encoder.dtype), output_hidden_states=True).hidden_states
                frames.append(states[-2])
        return {"image_embeds": torch.stack(frames, dim=1) if frames else None}


def check_frames(kind: str, num_frames: int, input_image: Pictures, end_image: Pictures) -> None:
    """Raise UsageError for frames that the kind of model does not take, and for missing ones that it needs."""
    taken, given = KIND_FRAMES.get(kind, FrameInputs()), {"input_image": input_image, "end_image": end_image}
    for name, value in given.items():
        if value is not None and not taken.takes(name):
            raise UsageError(f"this model takes no {name}", hint="leave it out, or use an image to video model")
    for name in taken.needed:
        value = given[name]
        if value is None or (isinstance(value, Sequence) and None in value):
            raise UsageError(f"this model needs an {name}", hint="give it, or use a text to video model")
        if num_frames == 1:
            raise UsageError(
                f"a clip of one frame is its own {name}, so there is nothing to make or learn",
                hint="give clips of 5 frames or more, or use a text to video model",
            )


def _listed(pictures: Pictures) -> list[Any]:
    return list(pictures) if isinstance(pictures, Sequence) else [pictures]


def _fitting(what: str, picture: Image.Image, height: int, width: int) -> Image.Image:
    check_picture(what, picture, height, width)
    return picture


def padded_text(embeds: Tensor, mask: Tensor | None) -> Tensor:
    """Return text embeddings (B, T, D) with zeros in place of padding, and behind it up to 512 tokens."""
    if mask is not None:
        embeds = embeds.masked_fill(~mask[..., None], 0)
    missing = TEXT_TOKENS - embeds.shape[1]
    if missing < 0:
        raise DsctlError(f"the text is {embeds.shape[1]} tokens, and the model takes {TEXT_TOKENS}", hint="shorten it")
    return torch.cat([embeds, embeds.new_zeros(len(embeds), missing, embeds.shape[2])], dim=1)
