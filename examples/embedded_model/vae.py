"""Trains the small autoencoder: the official class, with its convolutions run as 2D ones.

One frame reaches only the last temporal tap of a causal 3D convolution, so training holds just that
tap, as a matrix that Muon can move; the others are zero in the saved model. Latents are made easy to
generate as well as to decode: a KL term, and decoding half-size latents to half-size pictures
(https://arxiv.org/abs/2502.09509), which keeps their layout like a picture's.
"""

import math
import random
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLQwenImage
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import QwenImageCausalConv3d
from PIL import Image, ImageFilter
from torch import Tensor, nn

from drawings import Drawings, fit, outline
from optimizer import MuonAndAdamW
from scenes import SIZE, paint, random_scene

CONFIG = {
    "base_dim": 16,
    "dim_mult": [1, 2, 4, 3],
    "num_res_blocks": 1,
    "z_dim": 16,
    "temperal_downsample": [False, True, True],
}
POOL, BATCH, CROP = 14_000, 16, 64
KL_WEIGHT, HALF_SIZE_SHARE = 3e-3, 0.25
LEARNING_RATE, POLISH_RATE, WARM_UP = 2e-3, 1e-3, 100
EMA = 0.998


class FrameConv(nn.Module):
    """A convolution over single frames whose kernel is held as a matrix (out, in * height * width)."""

    def __init__(self, official: nn.Conv2d | QwenImageCausalConv3d) -> None:
        super().__init__()
        self.causal = isinstance(official, QwenImageCausalConv3d)
        weight = official.weight[:, :, -1] if self.causal else official.weight
        self.kernel = tuple(weight.shape)
        self.stride = official.stride[-1]
        # the causal class keeps its paddings in the order of F.pad: width, height, time
        self.padding = official._padding[0] if self.causal else official.padding[0]
        self.matrix = nn.Parameter(weight.detach().flatten(1).clone())
        self.bias = nn.Parameter(official.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (B, C, 1, H, W) where the official class is the causal one, else (B, C, H, W)."""
        frame = x.squeeze(2) if self.causal else x
        y = F.conv2d(frame, self.matrix.view(self.kernel), self.bias, self.stride, self.padding)
        return y.unsqueeze(2) if self.causal else y


def hold_as_frames(vae: nn.Module) -> None:
    """Replace every convolution that one frame uses by a `FrameConv`; drop the others' gradients."""
    for module in list(vae.modules()):
        for name, child in list(module.named_children()):
            if name == "time_conv":
                child.requires_grad_(False)
            elif isinstance(child, (QwenImageCausalConv3d, nn.Conv2d)):
                setattr(module, name, FrameConv(child))


def official_weights(trained: dict[str, Tensor], like: nn.Module) -> dict[str, Tensor]:
    """Turn the weights of frame convolutions into those of the official class."""
    weights = {}
    for name, tensor in like.state_dict().items():
        matrix = trained.get(name.removesuffix("weight") + "matrix")
        if "time_conv" in name:
            weights[name] = torch.zeros_like(tensor)
        elif matrix is None:
            weights[name] = trained[name]
        elif tensor.ndim == 5:
            weights[name] = torch.zeros_like(tensor)
            weights[name][:, :, -1] = matrix.view(tensor[:, :, -1].shape)
        else:
            weights[name] = matrix.view(tensor.shape)
    return weights


def picture_pool(drawings: Drawings, count: int, rng: random.Random) -> np.ndarray:
    """Draw the training pictures: scenes, then any icon, line drawings and smooth textures."""
    names = drawings.names()
    pictures = np.empty((count, SIZE, SIZE, 3), dtype=np.uint8)
    for i in range(count):
        kind = rng.random()
        if kind < 0.62:
            picture = paint(random_scene(rng), drawings, rng)
        elif kind < 0.95:
            picture = Image.new("RGB", (SIZE, SIZE), _any_colour(rng))
            drawing = fit(drawings.render(rng.choice(names)), rng.randint(36, 92))
            if kind > 0.86:
                drawing = outline(drawing, _any_colour(rng))
            room = (SIZE - drawing.width, SIZE - drawing.height)
            picture.paste(drawing, tuple(round(rng.random() * r) for r in room), drawing)
        else:
            noise = np.random.default_rng(rng.getrandbits(32)).integers(0, 256, (12, 12, 3))
            picture = Image.fromarray(noise.astype(np.uint8)).resize((SIZE, SIZE), Image.BICUBIC)
            picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0, 4)))
        pictures[i] = np.asarray(picture)
    return pictures


def _any_colour(rng: random.Random) -> tuple[int, int, int]:
    return rng.randrange(256), rng.randrange(256), rng.randrange(256)


def loss_of(vae: nn.Module, x: Tensor, half_size: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss, the squared error and the KL of pictures (B, 3, H, W) in [-1, 1]."""
    mean, log_variance = vae.quant_conv(vae.encoder(x.unsqueeze(2))).float().chunk(2, dim=1)
    log_variance = log_variance.clamp(-20.0, 10.0)
    z = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
    kl = 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).mean()
    if half_size:
        z = F.avg_pool2d(z.squeeze(2), 2).unsqueeze(2)
        x = F.avg_pool2d(x, 2)
    y = vae.decoder(vae.post_quant_conv(z)).squeeze(2).float()
    error = y - x
    edges = _differences(error)
    squared = error.square().mean()
    return error.abs().mean() + 0.5 * squared + 0.5 * edges + KL_WEIGHT * kl, squared, kl


def _differences(error: Tensor) -> Tensor:
    """Return how much an error changes between neighbouring pixels: blurred edges, mostly."""
    across = (error[..., 1:] - error[..., :-1]).abs().mean()
    return across + (error[..., 1:, :] - error[..., :-1, :]).abs().mean()


def train_vae(drawings: Drawings, folder: Path, seconds: float, seed: int = 0) -> None:
    """Train for about `seconds` and write the model, bf16, into `folder`."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    official = AutoencoderKLQwenImage(**CONFIG)
    vae = AutoencoderKLQwenImage(**CONFIG)
    vae.load_state_dict(official.state_dict())
    hold_as_frames(vae)
    with torch.no_grad():
        for module in vae.modules():
            if isinstance(module, FrameConv) and module.causal:
                # initialized for three temporal taps, of which one is in use
                module.matrix.mul_(math.sqrt(3.0) if module.kernel[-1] == 3 else 1.0)
    pool = torch.from_numpy(picture_pool(drawings, POOL, rng)).permute(0, 3, 1, 2)
    average = _optimize(vae, pool, rng, LEARNING_RATE, HALF_SIZE_SHARE, seconds)
    official.load_state_dict(official_weights(average, official))
    _measure_latents(official, pool[:1024])
    official.to(torch.bfloat16).save_pretrained(folder)


def polish_decoder(drawings: Drawings, start: Path, folder: Path, seconds: float, seed: int = 2) -> None:
    """Train the decoder of the model in `start` further, and write the model into `folder`.

    The encoder stays as it is, and with it every latent that was cached: a transformer may train meanwhile.
    """
    torch.manual_seed(seed)
    rng = random.Random(seed)
    official = AutoencoderKLQwenImage.from_pretrained(start).float()
    vae = AutoencoderKLQwenImage.from_pretrained(start).float()
    hold_as_frames(vae)
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    pool = torch.from_numpy(picture_pool(drawings, POOL, rng)).permute(0, 3, 1, 2)
    average = _optimize(vae, pool, rng, POLISH_RATE, 0.0, seconds)
    official.load_state_dict(official_weights(average, official))
    official.to(torch.bfloat16).save_pretrained(folder)


def _optimize(
    vae: nn.Module, pool: Tensor, rng: random.Random, peak_rate: float, half_size_share: float, seconds: float
) -> dict[str, Tensor]:
    """Train what is trainable on pictures of the pool, and return the average of all weights."""
    trainable = [p for p in vae.parameters() if p.requires_grad]
    optimizer = MuonAndAdamW(trainable, peak_rate, betas=(0.9, 0.99), weight_decay=0.0)
    average = {name: p.detach().clone() for name, p in vae.named_parameters()}
    start, step, done = time.monotonic(), 0, 0.0
    while done < 1.0:
        done = (time.monotonic() - start) / seconds
        rate = peak_rate * min(1.0, (step + 1) / WARM_UP) * (0.5 + 0.5 * math.cos(math.pi * min(1.0, done)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        x = _random_crops(pool, rng)
        with torch.autocast("cpu", torch.bfloat16):
            loss, squared, kl = loss_of(vae, x, half_size=rng.random() < half_size_share)
        loss.backward()
        nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        keep = min(EMA, (step + 1) / (step + 10))
        with torch.no_grad():
            for name, p in vae.named_parameters():
                average[name].lerp_(p, 1.0 - keep)
        if step % 100 == 0:
            print(
                f"{time.monotonic() - start:6.0f} s  step {step}  loss {loss.item():.4f}  "
                f"{10.0 * math.log10(4.0 / squared.item()):.2f} dB  kl {kl.item():.3f}",
                flush=True,
            )
        step += 1
    return average


def _random_crops(pool: Tensor, rng: random.Random) -> Tensor:
    """Choose pictures and a crop of each, on the grid of the latents: (B, 3, CROP, CROP) in [-1, 1]."""
    crops = []
    for _ in range(BATCH):
        picture = pool[rng.randrange(len(pool))]
        y, x = (8 * rng.randint(0, (SIZE - CROP) // 8) for _ in range(2))
        crops.append(picture[:, y : y + CROP, x : x + CROP])
    return torch.stack(crops).float() / 127.5 - 1.0


@torch.no_grad()
def _measure_latents(vae: AutoencoderKLQwenImage, pictures: Tensor) -> None:
    """Write the mean and deviation of sampled latents, per channel, into the model's config."""
    samples = []
    for chunk in pictures.split(64):
        x = (chunk.float() / 127.5 - 1.0).unsqueeze(2)
        samples.append(vae.encode(x).latent_dist.sample())
    latents = torch.cat(samples)
    mean, std = latents.mean(dim=(0, 2, 3, 4)), latents.std(dim=(0, 2, 3, 4))
    vae.register_to_config(
        latents_mean=[round(v, 5) for v in mean.tolist()],
        latents_std=[round(v, 5) for v in std.tolist()],
    )
