"""The VAE, which is one for video, on pictures: what it does with the frames that are not there is left out.

A convolution over three frames that looks back in time pads a picture, the first frame of its video, with two frames of
zeros. Two thirds of its multiplications are by these zeros.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torch.nn.functional import conv2d


def encode_single_frames(vae: nn.Module) -> None:
    """Have the convolutions of `vae` do a single frame in two dimensions. Names and weights stay as they are."""
    from diffusers.models.autoencoders.autoencoder_kl_qwenimage import QwenImageCausalConv3d

    for module in vae.modules():
        if isinstance(module, QwenImageCausalConv3d) and module.stride == (1, 1, 1):
            module.forward = partial(_convolve, module, module.forward)  # type: ignore[method-assign]


def _convolve(conv: nn.Conv3d, whole: Callable[..., Tensor], x: Tensor, cache_x: Tensor | None = None) -> Tensor:
    """Return what `whole`, the convolution's own forward, makes of `x` (B, C, T, H, W) after the frames `cache_x`."""
    if x.shape[2] != 1 or cache_x is not None:
        return whole(x, cache_x)
    _, height, width = conv.kernel_size  # odd, and the picture keeps its size
    return conv2d(x.squeeze(2), conv.weight[:, :, -1], conv.bias, padding=(height // 2, width // 2)).unsqueeze(2)
