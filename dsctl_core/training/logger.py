"""ModelLogger: what a run leaves behind, a line of metrics a step and the trained weights."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsctl_core.checkpoint.files import write_error, write_json, write_safetensors
from dsctl_core.lora.about import with_model_spec
from dsctl_core.lora.files import save_lora
from dsctl_core.lora.formats import FORMATS
from dsctl_core.lora.layers import linear_shapes, trained_layers
from dsctl_core.training.folder import METRICS_FILE, RUN_FILE, claim
from dsctl_core.training.sharded import whole_weights
from dsctl_core.version import __version__

if TYPE_CHECKING:
    from accelerate import Accelerator

    from dsctl_core.training.module import DiffusionTrainingModule, TrainedComponent


@dataclass(frozen=True)
class StepRecord:
    """The measurements of one step (one optimizer update). Times in seconds, memory in bytes."""

    step: int
    loss: float
    lr: float
    grad_norm: float
    seconds: float
    samples_per_second: float
    peak_memory_bytes: int


class ModelLogger:
    """Writes `metrics.jsonl` and `step-N.safetensors` into `output_path`; N counts optimizer updates.

    When several components are trained each gets a file of its own, `step-N.COMPONENT.safetensors`.
    A LoRA is written as `lora_format` (see dsctl_core.lora.formats) in `lora_dtype`, and read back to prove it; the
    format "peft" makes a folder `step-N.peft`.
    `metadata` is added to the header of every file; `run` says how the run was made and goes into `run.json`.
    A folder that holds a run already is refused.
    """

    def __init__(
        self,
        output_path: str | Path,
        remove_prefix_in_ckpt: str | None = None,
        metadata: dict[str, str] | None = None,
        run: dict[str, Any] | None = None,
        lora_format: str = "diffusers",
        lora_dtype: str = "float32",
    ) -> None:
        self.output_path = Path(output_path)
        self.remove_prefix_in_ckpt = remove_prefix_in_ckpt
        self.metadata = dict(metadata or {})
        self.run = run
        self.lora_format, self.lora_dtype = lora_format, lora_dtype
        self.saved_step = -1
        self.files: list[Path] = []

    def on_training_start(self, accelerator: Accelerator, module: DiffusionTrainingModule) -> None:
        """Claim the output folder."""
        if accelerator.is_main_process:
            claim(self.output_path)
        accelerator.wait_for_everyone()

    def on_step_end(self, accelerator: Accelerator, module: DiffusionTrainingModule, record: StepRecord) -> None:
        """Append the step's line to metrics.jsonl; with the first step, write run.json.

        Not earlier, so that a run that fails before it has done anything can be started again in the same folder.
        """
        if accelerator.is_main_process:
            if record.step == 1 and self.run is not None:
                write_json(self.output_path / RUN_FILE, {**self.run, "parameters": module.count_parameters()})
            path = self.output_path / METRICS_FILE
            try:
                with path.open("a", encoding="utf-8") as stream:
                    stream.write(json.dumps(asdict(record)) + "\n")
            except OSError as error:
                raise write_error(path, error) from error

    def save(self, accelerator: Accelerator, module: DiffusionTrainingModule, step: int) -> list[Path]:
        """Write the trained weights as they are after `step` updates, unless they are written already."""
        if step == self.saved_step:
            return self.files
        accelerator.wait_for_everyone()
        with whole_weights(accelerator, module):
            if accelerator.is_main_process:
                for component in module.trained:
                    self._write(module, component, step)
        self.saved_step = step
        self.files = [self._path(module, component, step) for component in module.trained]
        accelerator.wait_for_everyone()
        return self.files

    def _path(self, module: DiffusionTrainingModule, component: TrainedComponent, step: int) -> Path:
        middle = f".{component.name}" if len(module.trained) > 1 else ""
        suffix = ".peft" if component.lora and FORMATS[self.lora_format].folder else ".safetensors"
        return self.output_path / f"step-{step}{middle}{suffix}"

    def _write(self, module: DiffusionTrainingModule, component: TrainedComponent, step: int) -> None:
        about = {
            "dsctl_version": __version__,
            "family": module.pipe.family.name,
            "component": component.name,
            "kind": "lora" if component.lora else "weights",
            "steps": str(step),
            **component.description,
            **self.metadata,
        }
        path = self._path(module, component, step)
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
        )

    def on_training_end(self, accelerator: Accelerator, module: DiffusionTrainingModule, step: int) -> None:
        """Write the final weights."""
        self.save(accelerator, module, step)
