"""Shared by the trainings of the embedded models: the networks on one loss, their average, and a clock that ends a run.

The clock ends a run, not a number of steps: the learning rate follows the share of the time that is
used up, so that a run on a slower or busier machine still ends well.
"""

import argparse
import copy
import math
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path

import accelerate
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils.data import Dataset

from dsctl_core import (
    DiffusionTrainingModule,
    FlowMatchSFTLoss,
    ModelConfig,
    ModelLogger,
    QwenImagePipeline,
    launch_training_task,
)
from dsctl_core.losses.timesteps import Objective
from dsctl_core.pipeline import BasePipeline
from dsctl_core.training.output.logger import StepRecord
from optimizer import MuonAndAdamW
from tokenizer import SUFFIX, SYSTEM_PREFIX

FLAT = 0.45  # the share of the time after which the learning rate falls
EMA, EMA_EVERY = 0.9993, 4
PRINT_EVERY = 100
STEPS_WITHOUT_END = 10_000_000
FOLDERS = {"dit": "transformer", "text_encoder": "text_encoder"}  # of the networks that are trained


class TimeIsUp(Exception):
    """Ends the training loop when the clock says so."""


class Clock:
    """How much of a run's time is used up."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.start = seconds, time.monotonic()

    def used(self) -> float:
        """Return the share of the time that has passed, in [0, 1]."""
        return min(1.0, (time.monotonic() - self.start) / self.seconds)


class JointTraining(DiffusionTrainingModule):
    """Trains the denoiser and the text encoder on one loss."""

    pipeline: type[BasePipeline] = QwenImagePipeline
    objective: Objective | None = None  # how noise levels are weighted

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.pipe = self.pipeline.from_pretrained(
            torch_dtype=torch.float32,
            device="cpu",
            model_configs=[ModelConfig(path=str(folder))],
        )
        self.switch_pipe_to_training_mode(self.pipe, trainable_models="dit,text_encoder")
        ids = self.pipe.tokenizer(SYSTEM_PREFIX, return_tensors="pt").input_ids
        self.register_buffer("prefix", ids, persistent=False)

    def forward(self, data: dict) -> Tensor:
        """Return the loss of a batch; its timesteps are spread evenly over the schedule's levels."""
        x0 = data["input_latents"]
        levels = self.pipe.scheduler.timesteps
        timestep = levels[(data["timestep_bins"] * len(levels)).long()]
        return FlowMatchSFTLoss(
            self.pipe,
            input_latents=x0,
            noise=torch.randn_like(x0),
            timestep=timestep,
            objective=self.objective,
            prompt_embeds=self.encode(data["prompt"], self.prefix_of(data)),
        )

    def prefix_of(self, data: dict) -> Tensor:
        """Return the tokens (1, N) in front of every prompt of a batch."""
        return self.prefix

    def encode(self, prompts: list[str], prefix: Tensor) -> Tensor:
        """Return what the pipeline's own unit does for prompts of one length: hidden states (B, T, D).

        The template's first tokens are the same for all and see nothing behind them, so they are run once, not
        once for each prompt, and the prompts are run with their keys and values.
        """
        encoder = self.pipe.text_encoder.model
        texts = [prompt + SUFFIX for prompt in prompts]
        ids = self.pipe.tokenizer(texts, return_tensors="pt").input_ids
        past = encoder(input_ids=prefix, use_cache=True).past_key_values
        past.batch_repeat_interleave(len(prompts))
        start = prefix.shape[1]
        places = torch.arange(start, start + ids.shape[1]).expand(3, len(prompts), -1)
        return encoder(input_ids=ids, past_key_values=past, position_ids=places, use_cache=True).last_hidden_state


class AverageLogger(ModelLogger):
    """Keeps a moving average of the weights and writes it, as a complete model folder, now and then."""

    def __init__(self, output: Path, start: Path, clock: Clock, save_every: float, ema: float = EMA) -> None:
        super().__init__(output)
        self.ema = ema
        self.start, self.clock, self.save_every = start, clock, save_every
        self.average: dict[str, Tensor] = {}
        self.losses: list[float] = []
        self.last_save = time.monotonic()

    def on_step_end(self, accelerator: accelerate.Accelerator, module: JointTraining, record: StepRecord) -> None:
        """Average, print, save when it is time, and end the run when its time is over."""
        super().on_step_end(accelerator, module, record)
        if record.step % EMA_EVERY == 0 or not self.average:
            self._update(module, record.step)
        self.losses.append(record.loss)
        if record.step % PRINT_EVERY == 0:
            minutes = (time.monotonic() - self.clock.start) / 60
            loss = sum(self.losses) / len(self.losses)
            print(
                f"{minutes:5.1f} min  step {record.step}  loss {loss:.4f}  lr {record.lr:.2e}  "
                f"{record.samples_per_second:.2f} batches/s",
                flush=True,
            )
            self.losses = []
        if time.monotonic() - self.last_save > self.save_every:
            self.save(accelerator, module, record.step)
            self.last_save = time.monotonic()
        if self.clock.used() >= 1.0:
            self.save(accelerator, module, record.step)
            raise TimeIsUp

    @torch.no_grad()
    def _update(self, module: JointTraining, step: int) -> None:
        keep = min(self.ema, (1 + step) / (10 + step)) ** EMA_EVERY
        for name, p in module.trainable_parameters():
            if name in self.average:
                self.average[name].lerp_(p, 1.0 - keep)
            else:
                self.average[name] = p.detach().clone()

    def save(self, accelerator: accelerate.Accelerator, module: JointTraining, step: int) -> list[Path]:
        """Write the averaged weights, bf16, into `model-latest` in the layout of diffusers."""
        target = self.output_path / "model-latest"
        partial = self.output_path / "model-partial"
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(self.start, partial)
        for component, folder in FOLDERS.items():
            model = copy.deepcopy(module.pipe.component(component))
            _load_average(model, self.average, f"pipe.{component}.")
            model.to(torch.bfloat16).save_pretrained(partial / folder)
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
        print(f"saved the average at step {step}", flush=True)
        return [target]


@torch.no_grad()
def _load_average(model: nn.Module, average: dict[str, Tensor], prefix: str) -> None:
    for name, p in model.named_parameters():
        p.copy_(average[prefix + name])


def warm_up_flat_cosine(clock: Clock, warm_up: int) -> Callable[[torch.optim.Optimizer, int], LRScheduler]:
    """Return a schedule: up over the first steps, flat, then down on a cosine as the clock says."""

    def rate(step: int) -> float:
        left = (1.0 - clock.used()) / (1.0 - FLAT)
        falling = 1.0 if left >= 1.0 else 0.5 - 0.5 * math.cos(math.pi * left)
        return min(1.0, (step + 1) / warm_up) * max(falling, 0.01)

    return lambda optimizer, _: LambdaLR(optimizer, rate)


@dataclass(frozen=True)
class Recipe:
    """The settings of a training that differ from model to model.

    `longest` is the longest side of a matrix that Muon takes: the modulation's, whose input is one vector a sample, are
    left to AdamW. `product_dtype` is that of Muon's products.
    """

    learning_rate: float
    warm_up: int
    longest: int
    ema: float = EMA
    precision: str = "bf16"
    product_dtype: torch.dtype = torch.bfloat16
    kernel: Callable[[], AbstractContextManager[None]] = field(default=nullcontext)


def plain_products() -> AbstractContextManager[None]:
    """Return a context of attention by plain products, which at under a hundred tokens are fastest on a CPU."""
    return sdpa_kernel(SDPBackend.MATH)


def run(
    build: Callable[[], tuple[JointTraining, Dataset]],
    recipe: Recipe,
    folder: Path,
    output: Path,
    minutes: float,
    save_minutes: float,
) -> Path:
    """Train the module on the batches that `build` returns, and return the folder of the averaged model.

    `folder` has the networks that the module started from.
    """
    torch.manual_seed(0)
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision=recipe.precision)
    module, batches = build()
    clock = Clock(minutes * 60)
    logger = AverageLogger(output, folder, clock, save_minutes * 60, recipe.ema)
    settings = {"longest": recipe.longest, "product_dtype": recipe.product_dtype}
    with recipe.kernel(), suppress(TimeIsUp):
        launch_training_task(
            accelerator,
            batches,
            module,
            logger,
            optimizer=lambda params: MuonAndAdamW(params, recipe.learning_rate, **settings),
            lr_scheduler=warm_up_flat_cosine(clock, recipe.warm_up),
            max_steps=STEPS_WITHOUT_END,
            max_grad_norm=1.0,
        )
    return (output / "model-latest").rename(output / "model")


def command_line(description: str | None, minutes: float, save_minutes: float, threads: int) -> argparse.ArgumentParser:
    """Return the options that every training has, with these defaults."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--folder", type=Path, required=True, help="networks to start from")
    parser.add_argument("--latents", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=minutes)
    parser.add_argument("--save-minutes", type=float, default=save_minutes)
    parser.add_argument("--threads", type=int, default=threads)
    return parser
