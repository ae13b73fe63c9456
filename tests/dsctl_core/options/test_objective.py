"""Options of the noise levels that training draws, and the tasks that there are."""

from __future__ import annotations

from pathlib import Path

import pytest

from dsctl_core.errors import UsageError
from dsctl_core.losses import LOSSES
from dsctl_core.losses.timesteps import Objective
from dsctl_core.options import TASKS, TrainOptions
from dsctl_core.options.objective import ObjectiveOptions
from dsctl_core.options.tasks import LOSS_TASKS, loss_tasks
from dsctl_core.training.model.task_module import objective_of


@pytest.mark.parametrize(
    ("values", "problem", "hint"),
    [
        ({"logit_mean": 0.5}, "--logit-mean has no effect with --timestep-sampling uniform", "logit_normal too"),
        ({"logit_std": 0.5}, "--logit-std has no effect with --timestep-sampling uniform", "logit_normal too"),
        ({"timestep_sampling": "logit"}, "--timestep-sampling is 'logit'", "logit_normal"),
        ({"loss_weighting": "bel"}, "--loss-weighting is 'bel'", "did you mean 'bell'?"),
        ({"timestep_shift": 0}, "--timestep-shift is 0", "above 0"),
        ({"min_timestep_boundary": 0.5, "max_timestep_boundary": 0.5}, "0.5 is not below", "0 is noise"),
        (
            {"timestep_sampling": "diffsynth", "timestep_shift": 3},
            "--timestep-shift has no effect with --timestep-sampling diffsynth, which has its own",
            "leave out one",
        ),
        (
            {"timestep_sampling": "diffsynth", "loss_weighting": "none"},
            "--loss-weighting has no effect with --timestep-sampling diffsynth, which has its own",
            "leave out one",
        ),
        ({"max_timestep_boundary": 1.5}, "--max-timestep-boundary is 1.5", "from 0 to 1"),
    ],
)
def test_what_cannot_be_or_has_no_effect_is_refused(values: dict, problem: str, hint: str):
    with pytest.raises(UsageError) as caught:
        ObjectiveOptions(**values)
    assert problem in caught.value.problem
    assert hint in (caught.value.hint or "")


def test_the_options_are_those_of_train_and_the_usual_ones_are_the_usual_objective():
    assert set(ObjectiveOptions.model_fields) <= set(TrainOptions.flat_fields())
    assert objective_of(ObjectiveOptions()) == Objective()
    given = ObjectiveOptions(
        timestep_sampling="logit_normal", logit_mean=0.5, logit_std=2, timestep_shift=3, loss_weighting="none"
    )
    assert objective_of(given) == Objective("logit_normal", 0.5, 2, 3, 0.0, 1.0, "none")


def test_the_tasks_are_the_files_of_losses_and_those_are_the_losses():
    assert LOSS_TASKS == ("sft", "direct_distill")
    assert set(LOSSES) == set(LOSS_TASKS)
    assert all(LOSSES[name].task == name for name in LOSS_TASKS)
    assert {"sft", "sft:data_process", "direct_distill:train"} <= set(TASKS)


def test_a_file_with_a_loss_is_a_task_at_once(tmp_path: Path):
    for name in ("__init__", "contract", "sft", "mine"):
        (tmp_path / f"{name}.py").touch()
    assert loss_tasks(tmp_path) == ("sft", "mine")
