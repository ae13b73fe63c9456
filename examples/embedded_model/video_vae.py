"""Trains the video model's autoencoder, from the picture model's: what that lacks is time.

`AutoencoderKLWan` has the weights of `AutoencoderKLQwenImage`, so those of a still picture are there from the start:
the last temporal tap of each convolution. The encoder keeps them, and keeps one frame of four: a clip has the latents
of its frames 0, 4, 8, ... as pictures. The decoder starts as "every fourth frame, shown four times" and learns
what lies between: it sees the latents before, so it knows where a thing comes from.

The official class runs a clip in portions of four frames and keeps the last two of every layer. Training runs it whole,
which is the same in one pass (`run_whole`), and holds each kernel as a matrix that Muon can move. At full size, where a
third dimension costs most, it holds only the last tap: the other two are zero in the saved model.
"""

import copy
import dataclasses
import math
import random
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLQwenImage, AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, WanResample, WanRMS_norm
from PIL import Image
from torch import Tensor, nn

from drawings import Drawings, outline
from optimizer import MuonAndAdamW
from video_world import (
    BACKGROUNDS,
    FRAMES,
    NEW_MOTIONS,
    PATHS,
    SIDE,
    Action,
    Pose,
    background_picture,
    every_action,
    paint_clip,
    paste_along,
)

POOL = 900
# what a step trains on: latent frames, pixels of the side, clips, share of the steps
KINDS = ((1, 64, 8, 0.04), (2, 32, 12, 0.28), (3, 32, 8, 0.40), (3, 48, 4, 0.18), (5, 64, 2, 0.10))
LEARNING_RATE, WARM_UP = 1.5e-3, 50
EMA = 0.995
FLAT_LAYERS = ("encoder.conv_in.", "encoder.down_blocks.0.", "decoder.up_blocks.3.", "decoder.conv_out.")


class MatrixConv(nn.Module):
    """A convolution of the official class whose kernel is held as a matrix (out, in * time * height * width).

    A `flat` one holds the last temporal tap alone, and runs frame by frame.
    """

    def __init__(self, official: nn.Conv2d | nn.Conv3d, flat: bool) -> None:
        super().__init__()
        self.flat = flat and official.weight.ndim == 5
        weight = official.weight[:, :, -1] if self.flat else official.weight
        self.kernel, self.stride = tuple(weight.shape), official.stride
        self.causal = isinstance(official, WanCausalConv3d)
        # the causal class keeps its paddings in the order of F.pad: width, height, time
        self.padding = official._padding[::2][:2][::-1] if self.causal else official.padding
        self.past = official._padding[4] if self.causal else 0
        self.matrix = nn.Parameter(weight.detach().flatten(1).clone())
        self.bias = nn.Parameter(official.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """Convolve frames (B, C, H, W), or clips (B, C, T, H, W) seeing zeros before the first frame."""
        kernel = self.matrix.view(self.kernel)
        if x.ndim == 4:
            return F.conv2d(x, kernel, self.bias, self.stride, self.padding)
        if self.flat:
            return _by_frames(lambda frames: F.conv2d(frames, kernel, self.bias, 1, self.padding), x)
        if self.past:
            x = F.pad(x, (0, 0, 0, 0, self.past, 0))
        return F.conv3d(x, kernel, self.bias, self.stride, (0, *self.padding))


class RootMeanSquare(torch.autograd.Function):
    """The official norm over channels, with a backward pass that reads its inputs fewer times."""

    @staticmethod
    def forward(ctx, x: Tensor, gain: Tensor) -> Tensor:
        """Return x * gain / |x|, |x| being the length over dimension 1."""
        inverse = torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_min_(1e-12).reciprocal_()
        ctx.save_for_backward(x, gain, inverse)
        return (x * inverse).mul_(gain)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of x and of the gain."""
        x, gain, inverse = ctx.saved_tensors
        unit = x * inverse
        along = grad * unit
        of_gain = along.sum(dim=[0, *range(2, x.ndim)]).view(gain.shape)
        along = along.mul_(gain).sum(dim=1, keepdim=True)
        of_x = (grad * gain).sub_(unit.mul_(along)).mul_(inverse)
        return of_x, of_gain


class FastNorm(nn.Module):
    """The official norm with the parameter and the values of one, through `RootMeanSquare`."""

    def __init__(self, official: WanRMS_norm) -> None:
        super().__init__()
        self.scale, self.gamma = official.scale, official.gamma

    def forward(self, x: Tensor) -> Tensor:
        """Norm (B, C, ...) over C."""
        return RootMeanSquare.apply(x, self.scale * self.gamma)


class WholeResample(nn.Module):
    """A resampling of the official class, of whole clips at once."""

    def __init__(self, official: WanResample) -> None:
        super().__init__()
        self.mode, self.resample = official.mode, official.resample
        if official.mode.endswith("3d"):
            self.time_conv = official.time_conv

    def forward(self, x: Tensor, feat_cache: None = None, feat_idx: tuple = ()) -> Tensor:
        """Resample clips (B, C, T, H, W); the first frame is one at every scale of time."""
        if self.mode == "upsample3d" and x.shape[2] > 1:
            first, rest = x[:, :, :1], x[:, :, 1:]
            batch, channels, frames, height, width = rest.shape
            pairs = self.time_conv(rest).unflatten(1, (2, channels))  # (B, 2, C, T, H, W)
            rest = pairs.permute(0, 2, 3, 1, 4, 5).reshape(batch, channels, 2 * frames, height, width)
            x = torch.cat([first, rest], dim=2)
        x = _by_frames(self.resample, x)
        if self.mode == "downsample3d" and x.shape[2] > 1:
            x = torch.cat([x[:, :, :1], self.time_conv(x)], dim=2)
        return x.contiguous(memory_format=torch.channels_last_3d)


def _by_frames(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    batch, _, frames = x.shape[:3]
    y = layer(x.permute(0, 2, 1, 3, 4).flatten(0, 1))
    return y.unflatten(0, (batch, frames)).permute(0, 2, 1, 3, 4)


def run_whole(module: nn.Module, path: str = "") -> nn.Module:
    """Replace layers of the official class by those that run whole clips and hold matrices; return the model."""
    for name, child in list(module.named_children()):
        layer = run_whole(child, f"{path}{name}.")
        if isinstance(child, WanResample):
            setattr(module, name, WholeResample(layer))
        elif isinstance(child, WanRMS_norm):
            setattr(module, name, FastNorm(child))
        elif isinstance(child, (nn.Conv2d, nn.Conv3d)):
            setattr(module, name, MatrixConv(child, flat=f"{path}{name}.".startswith(FLAT_LAYERS)))
    return module


def official_weights(trained: dict[str, Tensor], like: nn.Module) -> dict[str, Tensor]:
    """Turn the weights of `run_whole` into those of the official class."""
    weights = {}
    for name, tensor in like.state_dict().items():
        matrix = trained.get(name.removesuffix("weight") + "matrix")
        if matrix is None:
            weights[name] = trained[name]
        elif matrix.numel() == tensor.numel():
            weights[name] = matrix.view(tensor.shape)
        else:
            weights[name] = torch.zeros_like(tensor)
            weights[name][:, :, -1] = matrix.view(tensor[:, :, -1].shape)
    return weights


@torch.no_grad()
def start_from_pictures(folder: Path) -> AutoencoderKLWan:
    """Return a model with the weights of the picture model in `folder` (AutoencoderKLQwenImage)."""
    pictures = AutoencoderKLQwenImage.from_pretrained(folder).float()
    names = ("base_dim", "dim_mult", "num_res_blocks", "z_dim", "temperal_downsample")
    vae = AutoencoderKLWan(**{name: pictures.config[name] for name in names})
    vae.load_state_dict(pictures.state_dict())
    for name, module in vae.named_modules():
        if isinstance(module, WanCausalConv3d):
            module.weight[:, :, :-1] = 0  # the taps that one frame never reaches
        if name.endswith("time_conv"):
            module.weight.zero_()
            module.bias.zero_()
            same = torch.eye(module.in_channels).repeat(module.out_channels // module.in_channels, 1)
            module.weight[:, :, -1, 0, 0] = same
    return vae


def clip_pool(drawings: Drawings, count: int, rng: random.Random) -> np.ndarray:
    """Draw the training clips: actions of the world, and any drawing on any colour that moves in any way."""
    actions, names = every_action(), drawings.names()
    clips = np.empty((count, FRAMES, SIDE, SIDE, 3), dtype=np.uint8)
    for i in range(count):
        if rng.random() < 0.7:
            clips[i] = paint_clip(_any_motion(rng.choice(actions), rng), drawings, rng)
            continue
        drawing = drawings.render(rng.choice(names))
        if rng.random() < 0.1:
            drawing = outline(drawing.resize((64, 64)), _any_colour(rng))
        where = background_picture(rng.choice(BACKGROUNDS))
        if rng.random() < 0.6:
            where = Image.new("RGB", (SIDE, SIDE), _any_colour(rng))
        clips[i] = paste_along(drawing, _any_path(rng), where)
    return clips


def _any_motion(action: Action, rng: random.Random) -> Action:
    """Return an action, one of four times with a motion that only the autoencoder is to know."""
    return dataclasses.replace(action, motion=rng.choice([*NEW_MOTIONS])) if rng.random() < 0.25 else action


def _any_path(rng: random.Random) -> list[Pose]:
    """Return the poses of two motions at once, each at its own strength."""
    one, two = (PATHS[rng.choice([*PATHS, *NEW_MOTIONS])] for _ in range(2))
    a, b = rng.uniform(0.5, 1.0), rng.uniform(0.0, 0.5)
    poses = []
    for frame in range(FRAMES):
        p, q = one(frame / (FRAMES - 1)), two(frame / (FRAMES - 1))
        poses.append(
            Pose(
                0.5 + a * (p.x - 0.5) + b * (q.x - 0.5),
                0.5 + a * (p.y - 0.5) + b * (q.y - 0.5),
                1.0 + a * (p.scale - 1.0) + b * (q.scale - 1.0),
                a * p.angle + b * q.angle,
            )
        )
    return poses


def _any_colour(rng: random.Random) -> tuple[int, int, int]:
    return rng.randrange(256), rng.randrange(256), rng.randrange(256)


def loss_of(vae: nn.Module, z: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the loss and the squared error of decoding latents (B, 16, t, h, w) to clips x (B, 3, T, H, W)."""
    error = vae.decoder(vae.post_quant_conv(z)) - x
    squared = error.square().mean()
    return error.abs().mean() + 0.5 * squared + 0.5 * _differences(error), squared


def _differences(error: Tensor) -> Tensor:
    """Return how much an error changes between neighbours, in a frame and (half as much) between frames."""
    across = (error[..., 1:] - error[..., :-1]).abs().mean() + (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
    if error.shape[2] == 1:
        return across
    return across + 0.5 * (error[:, :, 1:] - error[:, :, :-1]).abs().mean()


@torch.no_grad()
def encode_frames(vae: nn.Module, clips: Tensor, batch: int = 16) -> Tensor:
    """Return the mean latents (B, 16, t, h, w) of clips (B, T, H, W, 3) of bytes, by those frames that are kept."""
    kept = clips[:, ::4]
    latents = []
    for frames in kept.flatten(0, 1).split(batch):
        x = frames.permute(0, 3, 1, 2).unsqueeze(2).float() / 127.5 - 1.0
        latents.append(vae.quant_conv(vae.encoder(x)).chunk(2, dim=1)[0].squeeze(2))
    return torch.cat(latents).unflatten(0, kept.shape[:2]).transpose(1, 2)


def prepare_vae(drawings: Drawings, pictures: Path, folder: Path, seed: int = 0) -> None:
    """Write the model with the weights of the picture model in `pictures`, and with the statistics of its latents."""
    rng = random.Random(seed)
    vae = start_from_pictures(pictures)
    actions = every_action()
    clips = torch.from_numpy(np.stack([paint_clip(rng.choice(actions), drawings, rng) for _ in range(64)]))
    latents = encode_frames(run_whole(start_from_pictures(pictures)), clips)
    mean, std = latents.mean(dim=(0, 2, 3, 4)), latents.std(dim=(0, 2, 3, 4))
    vae.register_to_config(
        latents_mean=[round(v, 5) for v in mean.tolist()],
        latents_std=[round(v, 5) for v in std.tolist()],
    )
    vae.to(torch.bfloat16).save_pretrained(folder)


def train_decoder(
    drawings: Drawings, start: Path, folder: Path, seconds: float, seed: int = 2, save_seconds: float = 300.0
) -> None:
    """Train the decoder of the model in `start`, and write the model into `folder`, bf16, now and then.

    The encoder stays as it is, and with it every latent that was cached: a transformer may train meanwhile.
    """
    torch.manual_seed(seed)
    rng = random.Random(seed)
    official = AutoencoderKLWan.from_pretrained(start).float()
    vae = run_whole(AutoencoderKLWan.from_pretrained(start).float())
    for part in (vae.encoder, vae.quant_conv):
        part.requires_grad_(False)
    pool = torch.from_numpy(clip_pool(drawings, POOL, rng))
    latents = encode_frames(vae, pool)

    def save(average: dict[str, Tensor]) -> None:
        official.load_state_dict(official_weights(dict(vae.named_parameters()) | average, official))
        copy.deepcopy(official).to(torch.bfloat16).save_pretrained(folder)

    trainable = {name: p for name, p in vae.named_parameters() if p.requires_grad}
    optimizer = MuonAndAdamW(
        trainable.values(), LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.0, product_dtype=torch.float32
    )
    average = {name: p.detach().clone() for name, p in trainable.items()}
    start_time, step, done, saved, errors = time.monotonic(), 0, 0.0, 0.0, []
    while done < 1.0:
        now = time.monotonic() - start_time
        done = now / seconds
        rate = LEARNING_RATE * min(1.0, (step + 1) / WARM_UP) * (0.52 + 0.48 * math.cos(math.pi * min(1.0, done)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss, squared = loss_of(vae, *_random_parts(pool, latents, rng))
        loss.backward()
        nn.utils.clip_grad_norm_(list(trainable.values()), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        keep = min(EMA, (step + 1) / (step + 10))
        with torch.no_grad():
            for name, p in trainable.items():
                average[name].lerp_(p, 1.0 - keep)
        errors.append(squared.item())
        step += 1
        if step % 40 == 0:
            print(f"{now:6.0f} s  step {step}  {10.0 * math.log10(4.0 * len(errors) / sum(errors)):.2f} dB", flush=True)
            errors = []
        if now - saved > save_seconds or done >= 1.0:
            save(average)
            saved = now


def _random_parts(pool: Tensor, latents: Tensor, rng: random.Random) -> tuple[Tensor, Tensor]:
    """Choose clips, and a stretch and a part of each: latents (B, 16, t, h, w), and (B, 3, T, H, W) in [-1, 1]."""
    frames, side, count, _ = rng.choices(KINDS, [share for *_, share in KINDS])[0]
    z, x = [], []
    for _ in range(count):
        clip, first = rng.randrange(len(pool)), rng.randint(0, latents.shape[2] - frames)
        y, left = (rng.randint(0, (SIDE - side) // 8) for _ in range(2))
        z.append(latents[clip, :, first : first + frames, y : y + side // 8, left : left + side // 8])
        stretch = pool[clip, 4 * first : 4 * (first + frames) - 3]
        x.append(stretch[:, 8 * y : 8 * y + side, 8 * left : 8 * left + side])
    # channels last in memory
    return torch.stack(z), torch.stack(x).permute(0, 4, 1, 2, 3).float() / 127.5 - 1.0
