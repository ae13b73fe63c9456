"""Direct distillation: learn to reach in a few steps the picture that the model makes in many.

The dataset has pictures that the model made itself with many steps and guidance; each row says with which noise
(`seed`), and in how many steps and with what guidance the student is to come to the same picture.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, distributed
from torch.distributed.fsdp import FSDPModule

from dsctl_core.errors import DsctlError
from dsctl_core.losses.contract import loss
from dsctl_core.memory import gradient_checkpoint_forward
from dsctl_core.units import Inputs, is_guided

if TYPE_CHECKING:
    from dsctl_core.pipeline import BasePipeline

# The columns of a row, with what their cells must be; of the optional ones, what stands for a cell that is not there.
REQUIRED = ("num_inference_steps", "cfg_scale", "seed")
COLUMNS = (*REQUIRED, "rand_device", "negative_prompt", "embedded_guidance")
SAME_IN_BATCH = ("num_inference_steps", "cfg_scale", "rand_device", "embedded_guidance")
MOST_STEPS, MOST_GUIDANCE, MOST_SEED = 1000, 1000, 2**32 - 1
READ = ("input_latents", "noise", "height", "width", "num_inference_steps", "cfg_scale", "seed", "rand_device")


def read_row(row: Mapping[str, Any]) -> Inputs:
    """Return what a row says about the way to its picture.

    Required are `num_inference_steps`, `cfg_scale` and `seed`. `rand_device`, where the noise is drawn, is the CPU if
    it is not given; `negative_prompt` is for a `cfg_scale` other than 1, and `embedded_guidance` for networks with it.
    """
    negative, guidance = row.get("negative_prompt"), row.get("embedded_guidance")
    said: Inputs = {
        "num_inference_steps": int(_number(row, "num_inference_steps", 1, MOST_STEPS, whole=True)),
        "cfg_scale": _number(row, "cfg_scale", 0, MOST_GUIDANCE),
        "seed": [int(_number(row, "seed", 0, MOST_SEED, whole=True))],
        "rand_device": _device(row),
        "negative_prompt": ["" if _empty(negative) else str(negative)],
    }
    if not _empty(guidance):
        said["embedded_guidance"] = _number(row, "embedded_guidance", 0, MOST_GUIDANCE)
    return said


@loss(
    task="direct_distill",
    requires=READ,
    optional=("num_frames",),
    columns=COLUMNS,
    same_in_batch=SAME_IN_BATCH,
    read_row=read_row,
    draws_levels=False,
)
def DirectDistillLoss(pipe: BasePipeline, **inputs: Any) -> Tensor:
    """Denoise from the row's own noise as inference by Euler's steps does, and compare the result with the picture.

    Reads `noise` and `input_latents`, both (B, ...), and for the whole batch `num_inference_steps`, `cfg_scale`,
    `height` and `width`: the levels are those of inference at that size. The inputs of the negative prompt, where
    there is guidance, are in `negative`. Every step keeps its latents alone and is computed again in the backward
    pass, so that memory hardly grows with their number (Chen et al. 2016, arXiv:1604.06174). Returns each sample's
    mean squared error of the latents, (B,), computed in float32.
    """
    guided = is_guided(inputs["cfg_scale"])
    refuse_uneven_passes(pipe, inputs["num_inference_steps"] * (1 + guided))
    # The pipeline's own schedule stays that of training; and the backward pass needs these levels once more.
    scheduler = copy.copy(pipe.scheduler)
    tokens = pipe.tokens(inputs["height"], inputs["width"], inputs.get("num_frames", 1))
    scheduler.set_timesteps(inputs["num_inference_steps"], dynamic_shift_len=tokens)
    negative = inputs.pop("negative", {})
    offload = bool(inputs.get("use_gradient_checkpointing_offload"))

    def recomputed(step: Callable[[Tensor, Tensor], Tensor], latents: Tensor, timestep: Tensor) -> Tensor:
        return gradient_checkpoint_forward(step, True, offload, latents, timestep)

    latents = pipe.denoise(
        {**inputs, "latents": inputs["noise"]},
        {},
        negative,
        cfg_scale=inputs["cfg_scale"],
        scheduler=scheduler,
        run_step=recomputed,
    )
    return (latents.float() - inputs["input_latents"].float()).square().flatten(1).mean(dim=1)


def refuse_uneven_passes(pipe: BasePipeline, passes: int) -> None:
    """Raise a DsctlError if the model is divided between processes of which one runs it more often than another.

    FSDP2 brings a block's pieces together with the help of all processes, so they would wait for one another for ever.
    """
    if not any(isinstance(model, FSDPModule) for model in pipe.iteration_modules().values()):
        return
    everyone: list[int] = [0] * distributed.get_world_size()
    distributed.all_gather_object(everyone, passes)
    if len(set(everyone)) > 1:
        listed = ", ".join(map(str, everyone))
        raise DsctlError(
            f"the processes run a divided model another number of times in one step: {listed}",
            hint="give all rows one num_inference_steps, and a cfg_scale of 1 or another than 1 in all; or train "
            "without FSDP2",
        )


def _number(row: Mapping[str, Any], name: str, least: float, most: float, *, whole: bool = False) -> float:
    """Return the number in a cell, which may be text as a CSV file has it."""
    value = row.get(name)
    kind = "a whole number" if whole else "a number"
    hint = f"{name} is {kind} from {least:g} to {most:g}"
    if _empty(value):
        others = ", ".join(each for each in REQUIRED if each != name)
        raise DsctlError(
            f"has no {name!r}, which the task direct_distill needs", hint=f"{hint}; it also needs {others}"
        )
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise DsctlError(f"has the {name} {value!r}, which is not {kind}", hint=hint) from None
    if not least <= number <= most or (whole and number != int(number)):
        raise DsctlError(f"has the {name} {value!r}, which it cannot be", hint=hint)
    return number


def _device(row: Mapping[str, Any]) -> str:
    value = row.get("rand_device")
    if _empty(value):
        return "cpu"
    if value not in ("cpu", "cuda"):
        raise DsctlError(f"has the rand_device {value!r}", hint="it is cpu or cuda: where the noise was drawn")
    return str(value)


def _empty(value: Any) -> bool:
    return value is None or value == "" or value != value  # an empty cell of a table may be nan
