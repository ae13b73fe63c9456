"""Use Z-Image's control networks, which run layers of the transformer before their own blocks.

Version 2 also steers the transformer's refiner of image tokens. diffusers' class keeps these residuals to itself, while
the authors add them to the transformer too (VideoX-Fun, z_image_transformer2d_control.py; ComfyUI and DiffSynth-Studio
do as well). Here hooks take them out of the class and add them.

Legend: B samples, N image tokens, T prompt tokens, D channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor, cat, stack
from torch.nn.functional import interpolate

from dsctl_core.control import ControlUse, ResidualControl, control_network
from dsctl_core.control.units import MASKED, ControlImageEmbedder, mask_pixels
from dsctl_core.errors import UsageError
from dsctl_core.media.units import check_picture
from dsctl_core.memory.quantize import compute_dtype
from dsctl_core.memory.recompute import recomputed_inside, set_checkpointing
from dsctl_core.side_network import SideNetwork
from dsctl_core.units import Inputs

if TYPE_CHECKING:
    from dsctl_core.media.pipeline import LatentPipeline

# What `from_transformer` takes over from the transformer.
SHARED = (
    *("t_scale", "t_embedder", "all_x_embedder", "cap_embedder", "rope_embedder", "noise_refiner"),
    *("context_refiner", "x_pad_token", "cap_pad_token"),
)


@contextmanager
def sharing(network: Any, denoiser: Any) -> Iterator[None]:
    """Let `network` have layers of `denoiser` inside the block alone, so that they are not saved with it."""
    type(network).from_transformer(network, denoiser)
    try:
        yield
    finally:
        for name in SHARED:
            setattr(network, name, None)


def lists_of(
    latents: Tensor,
    prompt_embeds: Tensor,
    prompt_embeds_mask: Tensor | None,
    prompt_embeds_lengths: Sequence[int] | None,
    dtype: Any,
) -> tuple[list[Any], list[Any]]:
    """Return the images (C, 1, h, w) and the prompts (T, D) of a batch, as lists in `dtype`, without padding.

    Padding is at the end. Without the lengths of padded prompts the host waits for the GPU to count what its mask has.
    """
    images = list(latents.to(dtype).unsqueeze(2).unbind())
    prompts = list(prompt_embeds.to(dtype).unbind())
    if prompt_embeds_mask is not None:
        lengths = prompt_embeds_mask.sum(dim=1).tolist() if prompt_embeds_lengths is None else prompt_embeds_lengths
        prompts = [row[:length] for row, length in zip(prompts, lengths, strict=True)]
    return images, prompts


def z_image_residuals(
    network: Any,
    denoiser: Any,
    control: Tensor,
    latents: Tensor,
    timestep: Tensor,
    prompt_embeds: Tensor,
    prompt_embeds_mask: Tensor | None = None,
    prompt_embeds_lengths: Sequence[int] | None = None,
    scale: float = 1.0,
    use_gradient_checkpointing: bool = False,
    use_gradient_checkpointing_offload: bool = False,
) -> Mapping[str, Any]:
    """Return the residuals of `network` by the layers of the transformer after which they are added, times `scale`.

    In version 2 those of the refiner change what the blocks of the network read, so that `scale` is theirs to apply.
    `control` are the control latents (B or 1, C, h, w); for the other inputs see `model_fn_z_image`.
    """
    # diffusers' class says that it supports checkpointing, but lacks the attribute that its forward reads.
    network.__dict__.setdefault("gradient_checkpointing", False)
    set_checkpointing(network, use_gradient_checkpointing, use_gradient_checkpointing_offload)
    batch, dtype = len(latents), compute_dtype(denoiser, denoiser.layers[0].feed_forward.w1.weight)
    images, prompts = lists_of(latents, prompt_embeds, prompt_embeds_mask, prompt_embeds_lengths, dtype)
    own = compute_dtype(network, network.control_layers[0].feed_forward.w1.weight)
    shown = list(control.to(own).expand(batch, -1, -1, -1).unsqueeze(2).unbind())
    with sharing(network, denoiser), refiner_outputs(network) as outputs:
        samples = network(images, (1000 - timestep.expand(batch)) / 1000, prompts, shown, scale)
    made: dict[str, Any] = {"controlnet_block_samples": samples}
    if network.add_control_noise_refiner is not None:
        places = network.control_refiner_layers_places
        made["noise_refiner_samples"] = {place: outputs[0][n] * scale for n, place in enumerate(places)}
    return made


@contextmanager
def refiner_outputs(network: Any) -> Iterator[list[Tensor]]:
    """Collect what the last of the layers that steer the refiner returns: (layers + 1, B, N, D), the residuals first.

    In version 2.0 these layers are the main blocks, which run a second time afterwards. In version 1 there are none.
    """
    outputs: list[Tensor] = []
    if network.add_control_noise_refiner is None:
        yield outputs
        return
    layers = network.control_noise_refiner
    last = (network.control_layers if layers is None else layers)[-1]
    hook = last.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    try:
        yield outputs
    finally:
        hook.remove()


@contextmanager
def refined_by(denoiser: Any, samples: Mapping[int, Tensor] | None) -> Iterator[None]:
    """Add `samples` (B, N, D) to the outputs of the layers of the refiner, also when these are recomputed."""

    def hook_of(sample: Tensor) -> Any:
        return lambda module, inputs, output: output + sample.to(output.dtype)

    @contextmanager
    def installed() -> Iterator[None]:
        with ExitStack() as hooks:
            for place, sample in (samples or {}).items():
                hooks.callback(denoiser.noise_refiner[place].register_forward_hook(hook_of(sample)).remove)
            yield

    if samples is None:
        yield
        return
    with recomputed_inside(installed), installed():
        yield


class ControlContextEmbedder(ControlImageEmbedder):
    """Encode what networks of version 2 read, to `NAME_latents` (B, 2 C + 1, h, w).

    These are the latents of the control image; 1 - mask, of the nearest pixel; and the latents of the input image, grey
    where the mask is white. Without a mask the last two are zero, as in diffusers.
    """

    def __init__(self, name: str, column: str, painted: str | None = None) -> None:
        super().__init__(name, column)
        self.painted = painted
        if painted is not None:
            self.optional = {**self.optional, painted: None, "input_image": None}

    def process(self, pipe: LatentPipeline, **inputs: Any) -> Inputs:
        """Return the latents, or None without control images.

        Raises UsageError for a mask without a control image or an input image, and the reverse.
        """
        latents = super().process(pipe, **inputs)[self.output_params[0]]
        masks = self._listed(inputs, self.painted)
        if latents is None and masks:
            raise UsageError(f"{self.painted} is given without {self.column}", hint="give the picture too")
        if latents is None:
            return {self.output_params[0]: None}
        if self.painted is None:
            batch, channels, height, width = latents.shape
            return {self.output_params[0]: cat([latents, latents.new_zeros(batch, channels + 1, height, width)], dim=1)}
        pictures = self._listed(inputs, "input_image")
        if not masks:
            raise UsageError(f"{self.column} is given without {self.painted}", hint="give its mask too")
        if not pictures:
            raise UsageError(f"{self.painted} is given without input_image", hint="give the picture to paint on too")
        for mask in masks:
            check_picture(str(self.painted), mask, inputs["height"], inputs["width"])
        holes = stack([mask_pixels(mask) for mask in masks]).to(latents) >= MASKED
        # In [-1, 1], so that what is cut out is grey.
        shown = cat([pipe.preprocess_image(picture) for picture in pictures]) * ~holes
        tiles = (inputs.get("tiled", False), inputs.get("tile_size"), inputs.get("tile_stride"))
        kept = interpolate((~holes).to(latents), size=latents.shape[-2:])
        parts = [latents, kept, pipe.encode_pixels(shown, *tiles)]
        batch = max(len(part) for part in parts)
        return {self.output_params[0]: cat([part.expand(batch, -1, -1, -1) for part in parts], dim=1)}


def z_image_control(name: str, columns: tuple[str, ...], use: ControlUse) -> SideNetwork:
    """Return the side network called `name`, which reads `columns`: the control image.

    Its residuals are for the tokens of the prompt too, so that the negative prompt has its own.
    """
    control = ResidualControl(name, z_image_residuals, use, own_prompt=True)
    return control_network(name, control, [ControlImageEmbedder(name, *columns)], columns, borrows=True)


def z_image_control_2(name: str, columns: tuple[str, ...], use: ControlUse) -> SideNetwork:
    """Return the same for a network of version 2: it reads the control image, and a mask if `columns` has one."""
    control = ResidualControl(name, z_image_residuals, use, own_prompt=True)
    return control_network(name, control, [ControlContextEmbedder(name, *columns)], columns, borrows=True)
