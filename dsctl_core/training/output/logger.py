"""Define ModelLogger, which writes a line of metrics for each step and the trained weights."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import TypedDict

from dsctl_core.errors import DsctlError
from dsctl_core.files.atomic import write_error, write_json, write_text
from dsctl_core.files.json import read_json_as
from dsctl_core.files.safetensors import write_safetensors
from dsctl_core.lora.about import with_model_spec
from dsctl_core.lora.files import unnamed_layers
from dsctl_core.lora.formats import FORMATS
from dsctl_core.lora.layers import linear_shapes, trained_layers
from dsctl_core.lora.save import save_lora
from dsctl_core.report.runs import loss_of
from dsctl_core.training.distributed.fsdp import whole_weights
from dsctl_core.training.output.folder import METRICS_FILE, RUN_FILE, claim, lines_until
from dsctl_core.training.state.folder import clear_leftovers
from dsctl_core.version import __version__

if TYPE_CHECKING:
    from accelerate import Accelerator

    from dsctl_core.pipeline import BasePipeline
    from dsctl_core.training.model.module import DiffusionTrainingModule, TrainedComponent


@dataclass(frozen=True)
class StepRecord:
    """The measurements of one step (one optimizer update). Times in seconds, memory in bytes.

    `losses` are the mean losses of those of several datasets that had samples in the step, by name.
    """

    step: int
    loss: float
    lr: float
    grad_norm: float
    seconds: float
    samples_per_second: float
    peak_memory_bytes: int
    losses: dict[str, float] = field(default_factory=dict)

    def values(self) -> dict[str, Any]:
        """Return all measurements by name, as a line of metrics.jsonl has them."""
        own = {name: value for name, value in asdict(self).items() if name != "losses"}
        return own | {loss_of(label): value for label, value in self.losses.items()}


class RunFile(TypedDict, total=False):
    """What a resumed run takes over from the run.json of the run before it."""

    started: Any
    resumed: list[Any]


@dataclass(frozen=True)
class Continuation:
    """A resumption after `step` updates of the run in `output_path`; `changed` maps settings to (old, new)."""

    output_path: Path
    step: int
    changed: dict[str, list[Any]]


class ModelLogger:
    """Writes `metrics.jsonl` and `step-N.safetensors` into `output_path`; N counts optimizer updates.

    When several components are trained, each gets its own file, `step-N.COMPONENT.safetensors`; so does one of several
    denoisers, trained alone or not. A LoRA is read back after writing to verify the file.
    `variants` are further kinds of weights to save, as context managers that put them into the model; their files are
    `step-N.VARIANT.safetensors`.

    Args:
        output_path: the folder; a folder that already has a run is refused.
        remove_prefix_in_ckpt: the prefix to remove from the names of fully trained weights.
        metadata: metadata for the header of every file.
        run: the description of the run for `run.json`.
        lora_format: a format of dsctl_core.lora.formats; "peft" writes a folder `step-N.peft`.
        lora_dtype: the dtype of saved LoRAs.
        base_weights: by component, the identifier of the base weights for the header of its file.
        claimed: whether the folder has been claimed for this run already.
    """

    def __init__(
        self,
        output_path: str | Path,
        remove_prefix_in_ckpt: str | None = None,
        metadata: dict[str, str] | None = None,
        run: dict[str, Any] | None = None,
        lora_format: str = "diffusers",
        lora_dtype: str = "float32",
        base_weights: Mapping[str, str] | None = None,
        claimed: bool = False,
    ) -> None:
        self.claimed = claimed
        self.base_weights = dict(base_weights or {})
        self.output_path = Path(output_path)
        self.remove_prefix_in_ckpt = remove_prefix_in_ckpt
        self.metadata = dict(metadata or {})
        self.run = run
        self.lora_format, self.lora_dtype = lora_format, lora_dtype
        self.continues: Continuation | None = None
        self.described = False  # whether run.json is written
        self.variants: dict[str, Callable[[], AbstractContextManager[None]]] = {"": nullcontext}
        self.saved_step = -1
        self.files: list[Path] = []
        self.waiting: list[dict[str, Any]] = []  # lines for metrics.jsonl that precede the first step

    def on_training_start(self, accelerator: Accelerator, module: DiffusionTrainingModule) -> None:
        """Claim the output folder, unless the run is resumed in it."""
        goes_on = self.continues is not None and self.continues.output_path == self.output_path.absolute()
        if accelerator.is_main_process and not goes_on and not self.claimed:
            claim(self.output_path)
        accelerator.wait_for_everyone()

    def begin(self, accelerator: Accelerator) -> None:
        """Drop the metrics of steps that will be repeated; copy those of a resumed run in another folder."""
        if self.continues is not None and accelerator.is_main_process:
            clear_leftovers(self.output_path)
            lines = lines_until(self.continues.output_path / METRICS_FILE, self.continues.step)
            write_text(self.output_path / METRICS_FILE, "".join(lines))

    def on_step_end(self, accelerator: Accelerator, module: DiffusionTrainingModule, record: StepRecord) -> None:
        """Append the step's line to metrics.jsonl; with the first step, write run.json.

        It is not written earlier, so that a run that fails before its first step can be restarted in the same folder.
        """
        if accelerator.is_main_process:
            if not self.described and self.run is not None:
                write_json(self.output_path / RUN_FILE, {**self._describe(), "parameters": module.count_parameters()})
            self.described = True
            self._write_lines([record.values(), *self.waiting])
            self.waiting.clear()

    def append(self, accelerator: Accelerator, line: dict[str, Any]) -> None:
        """Append a line with a "step" to metrics.jsonl; lines before the first step are kept until then."""
        if not accelerator.is_main_process:
            return
        if line["step"] == 0:
            self.waiting.append(line)
        else:
            self._write_lines([line])

    def _write_lines(self, lines: list[dict[str, Any]]) -> None:
        path = self.output_path / METRICS_FILE
        try:
            with path.open("a", encoding="utf-8") as stream:
                stream.write("".join(json.dumps(_without_nan(line)) + "\n" for line in lines))
        except OSError as error:
            raise write_error(path, error) from error

    def _describe(self) -> dict[str, Any]:
        """Return the content of run.json, for a resumed run with the time of the resume and the changed settings."""
        run = self.run or {}
        if self.continues is None:
            return run
        try:
            before = read_json_as(self.continues.output_path / RUN_FILE, RunFile)
        except DsctlError:
            before = RunFile()
        again = {"step": self.continues.step, "started": run.get("started"), "changed": self.continues.changed}
        return {
            **run,
            "started": before.get("started", run.get("started")),
            "resumed": [*before.get("resumed", []), again],
        }

    def rehearse(self, accelerator: Accelerator, module: DiffusionTrainingModule, folder: Path) -> None:
        """Write the weights into `folder` as `save` will do; called by all processes."""
        self._write_all(accelerator, module, 0, folder)

    def save(self, accelerator: Accelerator, module: DiffusionTrainingModule, step: int) -> list[Path]:
        """Write the trained weights after `step` updates, unless they are written already; return the files."""
        if step == self.saved_step:
            return self.files
        accelerator.wait_for_everyone()
        self._write_all(accelerator, module, step, self.output_path)
        self.saved_step = step
        self.files = [self._path(module, component, step) for component in module.trained]
        accelerator.wait_for_everyone()
        return self.files

    def _path(self, module: DiffusionTrainingModule, component: TrainedComponent, step: int, variant: str = "") -> Path:
        several = len(module.trained) > 1 or component.name in several_denoisers(module.pipe)
        names = [component.name if several else "", variant]
        middle = "".join(f".{name}" for name in names if name)
        suffix = ".peft" if component.lora and FORMATS[self.lora_format].folder else ".safetensors"
        return self.output_path / f"step-{step}{middle}{suffix}"

    def _write_all(self, accelerator: Accelerator, module: DiffusionTrainingModule, step: int, folder: Path) -> None:
        for variant, in_place in self.variants.items():
            with in_place(), whole_weights(accelerator, module):
                if accelerator.is_main_process:
                    for component in module.trained:
                        path = folder / self._path(module, component, step, variant).name
                        self._write(module, component, step, variant, path)

    def _write(
        self, module: DiffusionTrainingModule, component: TrainedComponent, step: int, variant: str, path: Path
    ) -> None:
        about = {
            "dsctl_version": __version__,
            "family": module.pipe.family.name,
            "component": component.name,
            "kind": "lora" if component.lora else "weights",
            "steps": str(step),
            **({"variant": variant} if variant else {}),
            **component.description,
            **self.metadata,
        }
        if component.name in self.base_weights:
            about["base_weights"] = self.base_weights[component.name]
        if not component.lora:
            weights = module.export_trained(self.remove_prefix_in_ckpt)[component.name]
            write_safetensors(path, weights, about)
            return
        model = module.pipe.component(component.name)
        layers, shapes = trained_layers(model), linear_shapes(model)
        save_lora(
            path,
            {component.name: layers},
            with_model_spec(about, f"{module.pipe.family.title} LoRA, step {step}", layers),
            form=self.lora_format,
            dtype=self.lora_dtype,
            shapes={component.name: shapes},
            original=module.pipe.family.original_names,
            unnamed=unnamed_layers(component.name, several_denoisers(module.pipe)),
        )

    def on_training_end(self, accelerator: Accelerator, module: DiffusionTrainingModule, step: int) -> None:
        """Write the final weights."""
        self.save(accelerator, module, step)


def several_denoisers(pipe: BasePipeline) -> tuple[str, ...]:
    """Return the names of the denoisers of `pipe` if it has more than one, else ()."""
    names = tuple(denoiser.name for denoiser in pipe.parts.denoisers)
    return names if len(names) > 1 else ()


def _without_nan(line: dict[str, Any]) -> dict[str, Any]:
    """Return a line with None for NaN and infinity, which JSON cannot hold."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}
