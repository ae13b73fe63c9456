"""The loop: what a step is, what order the samples come in, what is written when, and when it stops."""

import json
import multiprocessing
from types import SimpleNamespace

import accelerate
import pytest
import torch
from torch import nn

from dsctl_core import ModelLogger, launch_training_task
from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.progress import NoProgress
from dsctl_core.training.callbacks.base import TrainingHook
from dsctl_core.training.model.module import DiffusionTrainingModule, TrainedComponent

FIELDS = {"step", "loss", "lr", "grad_norm", "seconds", "samples_per_second", "peak_memory_bytes"}


class Pipe(nn.Module):
    """As much of a pipeline as the loop and the logger need: one linear component."""

    family = SimpleNamespace(name="some-family")
    parts = SimpleNamespace(denoisers=[SimpleNamespace(name="dit")])

    def __init__(self):
        super().__init__()
        self.dit = nn.Linear(3, 1)
        nn.init.ones_(self.dit.weight)
        nn.init.zeros_(self.dit.bias)

    def component(self, name):
        return getattr(self, name)


class Module(DiffusionTrainingModule):
    """Regression on rows {"x": [..]} with noise from the row's seed; notes what it was given."""

    def __init__(self):
        super().__init__()
        self.pipe = Pipe()
        self.trained = [TrainedComponent("dit", lora=False)]
        self.seen = []

    def forward(self, data):
        rows = data if isinstance(data, list) else [data]
        self.seen.append([row["_row"] for row in rows])
        x = torch.tensor([row["x"] for row in rows])
        noise = [torch.randn(1, generator=torch.Generator().manual_seed(row["seed"])) for row in rows]
        return (self.pipe.dit(x) - torch.stack(noise)).square().mean()


ROWS = [{"x": [float(i), 1.0, -float(i) / 2], "_row": i} for i in range(8)]


def run(folder, rows=ROWS, accumulate=1, module=None, **kwargs):
    module = module or Module()
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
    settings = {"learning_rate": 1e-2, **kwargs}
    summary = launch_training_task(accelerator, rows, module, ModelLogger(folder), **settings)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return module, summary, lines


def weights(folder):
    return sorted((p.name for p in folder.glob("*.safetensors")), key=lambda n: int(n.split("-")[1].split(".")[0]))


def test_a_step_is_an_optimizer_update_everywhere(tmp_path):
    module, summary, lines = run(tmp_path, accumulate=4, num_epochs=2, save_steps=3)
    assert len(module.seen) == 16
    assert summary.steps == 4
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert weights(tmp_path) == ["step-3.safetensors", "step-4.safetensors"]


def test_a_line_of_metrics_has_exactly_the_documented_fields(tmp_path):
    _, summary, lines = run(tmp_path, max_steps=2)
    assert all(set(line) == FIELDS for line in lines)
    assert lines[-1]["loss"] == summary.final_loss
    assert lines[0]["lr"] == 1e-2
    assert lines[0]["peak_memory_bytes"] > 10_000_000


@pytest.mark.parametrize(("batch", "accumulate"), [(4, 1), (2, 2), (1, 4)])
def test_a_global_batch_can_be_made_in_several_ways(tmp_path, batch, accumulate):
    whole, _, expected = run(tmp_path / "a", batch_size=4, max_steps=4)
    parts, _, lines = run(tmp_path / "b", batch_size=batch, accumulate=accumulate, max_steps=4)
    assert [line["loss"] for line in lines] == pytest.approx([line["loss"] for line in expected], abs=1e-5)
    torch.testing.assert_close(parts.pipe.dit.weight, whole.pipe.dit.weight, atol=1e-5, rtol=0)


def test_equal_seeds_give_equal_runs_and_other_seeds_others(tmp_path):
    results = [run(tmp_path / str(i), seed=seed, num_epochs=2)[0] for i, seed in enumerate([5, 5, 6])]
    first, second, other = (module.pipe.dit.weight for module in results)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_every_epoch_sees_every_sample_once_in_another_order(tmp_path):
    seen = [row for rows in run(tmp_path, num_epochs=2)[0].seen for row in rows]
    assert sorted(seen[:8]) == sorted(seen[8:]) == list(range(8))
    assert seen[:8] != seen[8:]
    assert seen[:8] != list(range(8))


def test_worker_processes_change_nothing(tmp_path):
    alone, helped = (run(tmp_path / str(n), num_workers=n, max_steps=5)[0] for n in (0, 2))
    assert alone.seen == helped.seen
    assert torch.equal(alone.pipe.dit.weight, helped.pipe.dit.weight)


class Broken(list):
    """Rows of which one cannot be loaded."""

    def __getitem__(self, index):
        if index == 3:
            raise DsctlError("3.png is cut off", hint="copy it again")
        return super().__getitem__(index)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_in_a_sample_arrives_whole_even_from_a_worker(tmp_path, workers):
    with pytest.raises(DsctlError) as caught:
        run(tmp_path, rows=Broken(ROWS), num_workers=workers)
    assert (caught.value.problem, caught.value.hint) == ("3.png is cut off", "copy it again")
    assert not multiprocessing.active_children(), "workers end with the run, not when its traceback is collected"


def test_weights_are_saved_once_per_epoch_and_with_max_steps_once_at_the_end(tmp_path):
    run(tmp_path / "epochs", num_epochs=3)
    run(tmp_path / "steps", max_steps=20)
    assert weights(tmp_path / "epochs") == ["step-8.safetensors", "step-16.safetensors", "step-24.safetensors"]
    assert weights(tmp_path / "steps") == ["step-20.safetensors"]


def test_long_gradients_are_cut_to_the_norm_allowed(tmp_path):
    before = Module().pipe.dit.weight.clone()
    module, _, lines = run(
        tmp_path, max_steps=1, max_grad_norm=0.01, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1.0)
    )
    change = torch.cat([(module.pipe.dit.weight - before).flatten(), module.pipe.dit.bias])
    assert lines[0]["grad_norm"] > 0.01
    assert float(change.detach().norm()) == pytest.approx(0.01, rel=1e-4)


def test_a_schedule_counts_updates(tmp_path):
    _, _, lines = run(
        tmp_path,
        accumulate=2,
        max_steps=3,
        lr_scheduler=lambda o, total: torch.optim.lr_scheduler.LambdaLR(o, lambda done: 1 / (total - 2 + done)),
    )
    assert [line["lr"] for line in lines] == pytest.approx([1e-2, 1e-2 / 2, 1e-2 / 3])


def test_a_loss_that_is_not_finite_stops_the_run_before_it_does_harm(tmp_path):
    rows = [dict(row) for row in ROWS]
    rows[3]["x"] = [float("nan")] * 3
    module = Module()
    with pytest.raises(DsctlError, match=r"the loss of step \d is nan on row 3") as caught:
        run(tmp_path, rows=rows, module=module)
    assert caught.value.hint
    assert torch.isfinite(module.pipe.dit.weight).all()
    assert weights(tmp_path) == []


def test_a_folder_with_a_run_in_it_is_refused_and_left_as_it_is(tmp_path):
    run(tmp_path, max_steps=1)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(DsctlError, match="already holds a run") as caught:
        run(tmp_path, max_steps=1)
    assert "--resume latest" in caught.value.hint
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_an_empty_dataset_and_a_frozen_module_are_refused(tmp_path):
    with pytest.raises(DsctlError, match="the dataset is empty"):
        run(tmp_path, rows=[])
    frozen = Module().requires_grad_(False)
    with pytest.raises(UsageError, match="nothing is trainable"):
        run(tmp_path, module=frozen)


def test_progress_hears_of_every_step(tmp_path):
    class Noting(NoProgress):
        heard = []

        def start(self, what, total, done=0, unit="step"):
            self.heard.append((what, total, done))

        def advance(self, n=1, **fields):
            self.heard.append((n, sorted(fields)))

        def finish(self):
            self.heard.append("finish")

    run(tmp_path, max_steps=2, progress=Noting())
    assert Noting.heard == [("Training", 2, 0), *[(1, ["loss", "lr", "peak memory", "samples/s"])] * 2, "finish"]


def test_hooks_see_every_step_in_their_order_between_a_start_and_an_end(tmp_path):
    heard = []

    class Hook(TrainingHook):
        def __init__(self, name):
            self.name = name

        def on_training_start(self, run):
            heard.append((self.name, "start", run.step, run.total))

        def on_step_end(self, run, record):
            heard.append((self.name, "step", run.step, record.step))

        def on_training_end(self, run):
            assert not (tmp_path / "step-2.safetensors").exists()  # what a hook does at the end comes before the files
            heard.append((self.name, "end", run.step))

    run(tmp_path, max_steps=2, hooks=[Hook("a"), Hook("b")])
    steps = [(name, "step", step, step) for step in (1, 2) for name in "ab"]
    assert heard == [("a", "start", 0, 2), ("b", "start", 0, 2), *steps, ("a", "end", 2), ("b", "end", 2)]
