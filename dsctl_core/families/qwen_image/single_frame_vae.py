"""Speed up the video VAE on single images by skipping convolutions over padding frames.

A causal convolution over three frames pads an image, the first frame of its video, with two frames of zeros. Two thirds
of its multiplications are by these zeros.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torch.nn.functional import conv2d


def encode_single_frames(vae: nn.Module) -> None:
    """Make the convolutions of `vae` process a single frame in two dimensions; names and weights are unchanged."""
    from diffusers.models.autoencoders.autoencoder_kl_qwenimage import QwenImageCausalConv3d

    for module in vae.modules():
        if isinstance(module, QwenImageCausalConv3d) and module.stride == (1, 1, 1):
            module.forward = partial(_convolve, module, module.forward)  # type: ignore[method-assign]


def _convolve(conv: nn.Conv3d, whole: Callable[..., Tensor], x: Tensor, cache_x: Tensor | None = None) -> Tensor:
    """Return the output of `whole`, the forward of `conv`, for `x` (B, C, T, H, W) after the frames `cache_x`."""
    if x.shape[2] != 1 or cache_x is not None:
        return whole(x, cache_x)
    _, height, width = conv.kernel_size  # odd, so the padding below preserves the size
    return conv2d(x.squeeze(2), conv.weight[:, :, -1], conv.bias, padding=(height // 2, width // 2)).unsqueeze(2)
