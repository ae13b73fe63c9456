"""Train any family on any task: rows -> the units of the pipeline -> the loss of the task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from dsctl_core.cache.reader import CACHED
from dsctl_core.data.dataset import ROW_SEED
from dsctl_core.data.several import DATASET
from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.family import Family
from dsctl_core.lora.dropout import dropouts_of, seed_dropout
from dsctl_core.losses import Loss, find_loss
from dsctl_core.losses.contract import Sides
from dsctl_core.losses.timesteps import Objective, choose_denoiser
from dsctl_core.options.datasets import DatasetTable
from dsctl_core.options.objective import ObjectiveOptions
from dsctl_core.pipeline import BasePipeline
from dsctl_core.placement import Placement
from dsctl_core.stages.batching import encode_all
from dsctl_core.stages.sample import Sample, collate, padded_outputs, pick, rounded, unpick
from dsctl_core.stages.split import PER_STEP_INPUTS, plan_stages, run
from dsctl_core.training.model.base_target import BaseTarget, check_tables_for
from dsctl_core.training.model.module import DiffusionTrainingModule


class TaskModule(DiffusionTrainingModule):
    """The training module of `dsctl train`. Families differ in the pipeline, tasks in the loss.

    A sample comes from a cache or is encoded here, by the same units, with the same result.
    """

    def __init__(
        self,
        pipe: BasePipeline,
        task: str,
        *,
        extra_inputs: Sequence[str] = (),
        use_gradient_checkpointing: bool = False,
        use_gradient_checkpointing_offload: bool = False,
        objective: Objective | None = None,
        tables: Sequence[DatasetTable] = (),
        **training_mode: Any,
    ) -> None:
        """Prepare `pipe` for training.

        Args:
            pipe: the pipeline, with the components that training runs.
            task: the name of the task, which selects the loss.
            extra_inputs: names of further inputs, taken from the rows.
            use_gradient_checkpointing: recompute activations in the backward pass.
            use_gradient_checkpointing_offload: keep the checkpoints in main memory.
            objective: how noise levels are drawn and weighted. A loss that draws none accepts only the default.
            tables: the tables of several datasets; the "_dataset" of a row is a place in them.
            training_mode: passed to `switch_pipe_to_training_mode`.
        """
        super().__init__()
        self.pipe = pipe
        self.loss = find_loss(task)
        self.objective = objective or Objective()
        refuse_unused(self.objective, self.loss, pipe.family)
        self.objective.apply(pipe.scheduler, pipe.family)
        self.extra_inputs = tuple(extra_inputs)
        self.run_time_inputs = {
            "use_gradient_checkpointing": use_gradient_checkpointing,
            "use_gradient_checkpointing_offload": use_gradient_checkpointing_offload,
            "objective": self.objective,
        }
        self.switch_pipe_to_training_mode(pipe, **training_mode)
        self.stages = plan_stages(pipe, self.loss, [component.name for component in self.trained])
        self.denoisers = [each for each in pipe.parts.denoisers if each.name not in self.stages.idle]
        # Denoisers stay: the optimizer holds the tensors of a trained one, and a frozen one may follow it in a step.
        pipe.placement = Placement(staying=[each.name for each in self.denoisers])
        self.tables = tuple(tables)
        self.preserved = self._preserved()
        self.padded = padded_outputs(pipe.units)
        self.dropouts = dropouts_of(pipe)

    def forward(self, data: dict[str, Any] | list[dict[str, Any]]) -> Tensor:
        """Return the scalar mean loss over a row, or over a list of rows of one size."""
        rows = data if isinstance(data, list) else [data]
        samples = [row[CACHED] for row in rows] if CACHED in rows[0] else self.encode(rows)
        shared, posi, nega = unpick(collate(samples, self.padded))
        own = [name for name in PER_STEP_INPUTS if name not in self.loss.requires]
        drawn = {name: [row.get(name) for row in rows] for name in own}
        shared = {**self._placed(shared), **drawn, **self.run_time_inputs, **self._levels(rows), **self._targets(rows)}
        seed_dropout(self.dropouts, [row.get("seed") for row in rows])
        shared, posi, nega = run(
            self.stages.split.every_step, self.pipe, (shared, self._placed(posi), self._placed(nega))
        )
        losses = self.loss.by_sample(self.pipe, **shared, **posi, negative=nega)
        self.sample_losses = losses.detach()
        weights = [table.loss_weight for table in self._tables_of(rows)]
        if any(weight != 1 for weight in weights):
            losses = losses * losses.new_tensor(weights)
        return losses.mean()

    def _tables_of(self, rows: Sequence[dict[str, Any]]) -> list[DatasetTable]:
        """Return the table of each row, of several datasets; none for a single one."""
        return [self.tables[row.get(DATASET, 0)] for row in rows] if self.tables else []

    def _preserved(self) -> tuple[nn.Module, ...]:
        """Return the models whose predictions without LoRA are targets of some tables; check what tables ask for."""
        names = [each.name for each in self.trained]
        whole = [each.name for each in self.trained if not each.lora]
        check_tables_for(self.tables, self.pipe, names, whole, self.loss, self.objective)
        wanted = any(table.target == "base" for table in self.tables)
        return tuple(self.pipe.component(name) for name in names) if wanted else ()

    def _targets(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return the input that replaces the target of the loss, if the rows, which agree, have that of the base."""
        if not self.preserved:
            return {}
        used = self._tables_of(rows)[0].target == "base"
        divided = any(isinstance(model, FSDPModule) for model in self.pipe.iteration_modules().values())
        return {"base_target": BaseTarget(self.preserved, used)} if used or divided else {}

    def _levels(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return the inputs that set the noise levels of a micro-batch, and the denoiser for them.

        In validation each row has its timestep. Otherwise the loss draws it, in the range of the denoiser that the seed
        of the first row selects among the trained ones.
        """
        if "_timestep" in rows[0]:
            timestep = torch.stack([row["_timestep"] for row in rows])
            return {"timestep": timestep, "denoiser": self.pipe.denoiser_of(timestep)}
        objective = self._objective_of(rows)
        if len(self.pipe.parts.denoisers) == 1 or not self.loss.draws_levels:
            return {"objective": objective}
        denoiser, objective = choose_denoiser(objective, self.pipe.scheduler, self.denoisers, rows[0].get("seed"))
        return {"objective": objective, "denoiser": denoiser.name}

    def _objective_of(self, rows: Sequence[dict[str, Any]]) -> Objective:
        """Return the objective of a batch, whose rows agree in the boundaries that their datasets have of their own."""
        if not self.tables:
            return self.objective
        table = self._tables_of(rows)[0]
        return self.objective.within(table.min_timestep_boundary, table.max_timestep_boundary)

    def trained_levels(self) -> Tensor:
        """Return the timesteps of the training table that belong to a trained denoiser, (n,) float32."""
        table, idle = self.pipe.scheduler.timesteps, self.stages.idle
        if not idle:
            return table
        return torch.stack([each for each in table if self.pipe.parts.denoiser_at(float(each)).name not in idle])

    def encode(self, rows: Sequence[dict[str, Any]]) -> list[Sample]:
        """Return the first stage's output for each row.

        It equals the output for the row alone, to the bit: rows share a batch only on a CPU, and only rows with equal
        batch keys. Batches on a GPU are computed by other kernels, which round differently.
        """
        # In the precision of the weights, as in inference and for a cache, whatever the precision of training.
        with torch.no_grad(), torch.autocast(self.pipe.device.type, enabled=False):
            try:
                return self._encode(rows)
            except DsctlError as error:
                if len(rows) > 1:  # find the row that failed
                    return [sample for row in rows for sample in self.encode([row])]
                if "_row" not in rows[0]:
                    raise
                raise DsctlError(f"row {rows[0]['_row'] + 1}: {error.problem}", hint=error.hint) from error

    def _encode(self, rows: Sequence[dict[str, Any]]) -> list[Sample]:
        stages, each = self.stages, [self._inputs(row) for row in rows]
        size = len(rows) if self.pipe.device.type == "cpu" else 1
        for sides in each:
            run(stages.checks, self.pipe, sides)
        made = [pick(sides, stages.raw) for sides in each]
        for group in stages.groups:
            found = encode_all(self.pipe, group, [pick(sides, group.reads) for sides in each], size)
            made = [{**before, **new} for before, new in zip(made, found, strict=True)]
        return [rounded(sample, self.pipe.torch_dtype) for sample in made]

    def _inputs(self, row: dict[str, Any]) -> Sides:
        """Return the inputs of one row. A loss that reads the row's own seed gets that, not the seed of this step."""
        if self.loss.read_row is not None and ROW_SEED in row:
            row = {**row, "seed": row[ROW_SEED]}
        return self.loss.inputs_from_row(self.pipe, row, self.extra_inputs)

    def _placed(self, values: dict[str, Any]) -> dict[str, Any]:
        return {
            name: value.to(self.pipe.device) if isinstance(value, Tensor) else value for name, value in values.items()
        }


def objective_of(options: ObjectiveOptions) -> Objective:
    """Return the objective, how noise levels are drawn and weighted, of `options`."""
    usual = Objective()
    return Objective(
        sampling=options.timestep_sampling,
        logit_mean=usual.logit_mean if options.logit_mean is None else options.logit_mean,
        logit_std=usual.logit_std if options.logit_std is None else options.logit_std,
        shift=options.timestep_shift,
        min_boundary=options.min_timestep_boundary,
        max_boundary=options.max_timestep_boundary,
        weighting=options.loss_weighting,
    )


def refuse_unused(objective: Objective, loss: Loss, family: Family) -> None:
    """Raise an error for an objective with a loss that draws no noise levels, or with levels that `family` lacks."""
    objective.check(family)
    if objective != Objective() and not loss.draws_levels:
        raise UsageError(
            f"the task {loss.task} goes through the levels of inference, so none are drawn or weighted",
            hint="leave the objective out",
        )
