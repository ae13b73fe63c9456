"""Define Z-Image's units, in the order in which they run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.families.z_image.family import TEXT_TOKENS
from dsctl_core.families.z_image.text import chats, embed, fixed_pieces
from dsctl_core.media.prompts import pad_embeddings
from dsctl_core.media.references import Pictures, by_sample, center_cropped
from dsctl_core.units import Inputs, PipelineUnit

if TYPE_CHECKING:
    from dsctl_core.families.z_image.pipeline import ZImagePipeline
    from dsctl_core.pipeline import BasePipeline

MOST_PIXELS = 1024 * 1024  # a reference image with more is scaled to the size of the generated image
LEAST_SIDE, MOST_RATIO = 64, 8  # limits of reference images in diffusers
Sizes = tuple[tuple[int, int], ...]


class ReferenceEmbedder(PipelineUnit):
    """Encode the reference images of Omni twice: to latents by the VAE, and to features by SigLIP 2."""

    output_params = ("edit_latents", "edit_sizes", "siglip_embeds", "siglip_sizes")
    onload_model_names = ("vae", "siglip")

    def process(
        self,
        pipe: ZImagePipeline,
        height: int,
        width: int,
        edit_image: Pictures | None = None,
        tiled: bool = False,
        tile_size: int | None = None,
        tile_stride: int | None = None,
    ) -> Inputs:
        """Return `edit_latents` (B, N, 16) and `siglip_embeds` (B, M, D), with the sizes (h, w) of each image in both.

        All are None without reference images. `edit_image` is one image or a list of images for all samples (B is 1),
        or a list of images per sample, whose first images have one size, and so on. Raises UsageError for weights that
        take no references.

        Args:
            pipe: The pipeline.
            height: Height of the generated image in pixels.
            width: Width of the generated image in pixels.
            edit_image: The reference images; None for none.
            tiled: Whether the VAE works in tiles.
            tile_size: Size of a tile in pixels (None: the default of the VAE).
            tile_stride: Distance of tiles in pixels (None: the default of the VAE).
        """
        if edit_image is None:
            return dict.fromkeys(self.output_params)
        if not pipe.has("siglip"):
            raise UsageError(
                "these weights take no reference pictures", hint="leave --edit-image out, or use Z-Image-Omni-Base"
            )
        samples = [[scaled(picture, height * width) for picture in own] for own in by_sample(edit_image)]
        if any([p.size for p in own] != [p.size for p in samples[0]] for own in samples):
            raise DsctlError(
                "one batch has reference pictures of different numbers or sizes",
                hint="give a fixed --height and --width, or a batch size of 1",
            )
        found = []
        for pictures in zip(*samples, strict=True):  # the first of every sample, the second of every sample, ...
            fitted = [center_cropped(picture, pipe.parts.division_factor) for picture in pictures]
            latents = pipe.encode_pictures(fitted, tiled, tile_size, tile_stride)
            found.append((latents, torch.stack([self._features(pipe, each) for each in pictures])))
        latents_of, features_of = zip(*found, strict=True)
        return {
            "edit_latents": torch.cat([each.flatten(2).transpose(1, 2) for each in latents_of], dim=1),
            "edit_sizes": tuple((each.shape[2], each.shape[3]) for each in latents_of),
            "siglip_embeds": torch.cat([each.flatten(1, 2) for each in features_of], dim=1),
            "siglip_sizes": tuple((each.shape[1], each.shape[2]) for each in features_of),
        }

    @staticmethod
    def _features(pipe: ZImagePipeline, picture: Image.Image) -> Tensor:
        """Return the features of the patches of an image, (h, w, D)."""
        pipe.load_models_to_device(("siglip",))
        inputs = pipe.reader("siglip_processor")(images=[picture.convert("RGB")], return_tensors="pt").to(pipe.device)
        height, width = inputs.spatial_shapes[0].tolist()
        states = pipe.component("siglip")(**inputs).last_hidden_state
        return states[0, : height * width].unflatten(0, (height, width))


def scaled(picture: Image.Image, area: int) -> Image.Image:
    """Return a reference image, scaled to about `area` pixels if it has more than a megapixel."""
    width, height = picture.size
    if min(width, height) < LEAST_SIDE or max(width, height) > MOST_RATIO * min(width, height):
        raise UsageError(
            f"a reference picture is {width}x{height}, but each side needs {LEAST_SIDE} pixels at least, and the "
            f"longer one may be {MOST_RATIO} times the shorter at most",
            hint="give another picture",
        )
    if width * height <= MOST_PIXELS:
        return picture
    scale = (area / (width * height)) ** 0.5
    return picture.resize((int(width * scale), int(height * scale)), Image.Resampling.LANCZOS)


class PromptEmbedder(PipelineUnit):
    """Encode the prompt to hidden states of the text encoder; with reference images, in pieces around their places."""

    output_params = ("prompt_embeds", "prompt_embeds_mask", "prompt_pieces")
    onload_model_names = ("text_encoder",)
    separate_cfg = True
    padded = {"prompt_embeds": "prompt_embeds_mask"}

    def process(self, pipe: ZImagePipeline, prompt: str | list[str], edit_image: Pictures | None = None) -> Inputs:
        """Return `prompt_embeds` (B, T, D), and `prompt_embeds_mask`, (B, T) bool or None if nothing is padded.

        With reference images, `prompt_embeds` starts with the pieces of the chat that all prompts have in common, and
        `prompt_pieces` are their numbers of tokens; else it is None.
        """
        pipe.load_models_to_device(self.onload_model_names)
        tokenizer, encoder = pipe.reader("tokenizer"), pipe.component("text_encoder")
        prompts = [prompt] if isinstance(prompt, str) else prompt
        references = 0 if edit_image is None else len(by_sample(edit_image)[0])
        rows = embed(tokenizer, encoder, chats(tokenizer, prompts, pipe.has("siglip"), references), pipe.device)
        pieces = None
        if references:
            fixed = [embed(tokenizer, encoder, [text], pipe.device)[0] for text in fixed_pieces(references)]
            rows, pieces = [torch.cat([*fixed, row]) for row in rows], tuple(len(each) for each in fixed)
        embeds, valid = pad_embeddings(rows)
        return {"prompt_embeds": embeds, "prompt_embeds_mask": valid, "prompt_pieces": pieces}

    def batch_key(self, pipe: BasePipeline, shared: Inputs, posi: Inputs, nega: Inputs) -> list[list[int]]:
        """Return the numbers of tokens: attention over padding uses another kernel, which rounds differently."""
        tokenizer, omni = pipe.reader("tokenizer"), pipe.has("siglip")
        prompts = [each for each in (posi.get("prompt"), nega.get("negative_prompt")) if each is not None]
        texts = [chats(tokenizer, [each] if isinstance(each, str) else each, omni) for each in prompts]
        read = [tokenizer(each, truncation=True, max_length=TEXT_TOKENS).input_ids for each in texts]
        return [[len(ids) for ids in each] for each in read]
