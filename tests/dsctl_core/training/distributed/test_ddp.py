"""DDP with weights that get no gradient: found out once, or at each step, with equal results; a change is refused."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import DistributedDataParallelKwargs
from accelerate.utils import DistributedType

from dsctl_core.errors import UsageError
from dsctl_core.training.distributed.ddp import UsedWeights, naming_unused_weights
from dsctl_core.training.plan.module import has_static_graph
from tests.dsctl_core.training.distributed.graphs_in_processes import CASES

SCRIPT = "tests.dsctl_core.training.distributed.graphs_in_processes"


@pytest.fixture(scope="module")
def found(python, tmp_path_factory):
    """Return what came of each case in the first of two processes."""
    folder = tmp_path_factory.mktemp("graphs")
    launch = [python, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", SCRIPT]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[4]), "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run([*launch, str(folder)], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((folder / f"process-{rank}.json").read_text()) for rank in (0, 1))
    assert first == second and first.keys() == CASES.keys()
    return first


def test_a_static_graph_gives_the_weights_of_a_search_also_with_accumulation(found):
    searched, static = ([torch.tensor(each) for each in found[name]] for name in ("searched", "static"))
    for one, other in zip(searched, static, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)
    assert static[-1].tolist() == [pytest.approx(0.6)], "what no step computes with stays"
    assert static[0].tolist() != [[pytest.approx(0.1)] * 3]


@pytest.mark.parametrize("case", ["more", "fewer"])
def test_a_graph_that_changes_is_refused_in_one_line_before_an_update_with_it(found, case):
    problem, hint, calls = found[case]
    assert "with other trained weights than the first step" in problem
    assert hint.startswith("give --find-unused-parameters")
    assert calls in (5, 6), "in the micro-batches of the third step"


def test_an_unused_weight_is_refused_where_there_may_be_none(found):
    assert found["refused"][0].startswith("--no-find-unused-parameters is given")


def test_what_torch_finds_out_names_the_option():
    handler = DistributedDataParallelKwargs(find_unused_parameters=False)
    alone = SimpleNamespace(ddp_handler=handler, distributed_type=DistributedType.NO)
    used = UsedWeights(alone, [torch.nn.Parameter(torch.ones(1))])
    used.require(1)  # one process waits for nobody
    assert not used.begins()
    text = "Expected to have finished reduction in the prior iteration before starting a new one."
    with pytest.raises(UsageError, match="--no-find-unused-parameters is given"), naming_unused_weights(used):
        raise RuntimeError(text)
    with pytest.raises(RuntimeError, match="something else"), naming_unused_weights(used):
        raise RuntimeError("something else")


def plan(device="cuda", trained=("dit",), inputs=(), sides=(), search=None, compiled=False):
    """As much of a plan as says whether its graph is static."""
    family = SimpleNamespace(optional_inputs=("input_image",))
    parts = SimpleNamespace(denoisers=[SimpleNamespace(name="dit"), SimpleNamespace(name="dit_2")])
    options = SimpleNamespace(
        training=SimpleNamespace(find_unused_parameters=search),
        memory=SimpleNamespace(compile=compiled),
        data=SimpleNamespace(extra_inputs=inputs),
        trained_components=trained,
    )
    model = SimpleNamespace(parts=parts, family=family, side_networks=sides)
    return SimpleNamespace(options=options, source=None, model=model), torch.device(device)


@pytest.mark.parametrize(
    ("static", "settings"),
    [
        (True, {}),
        (True, {"inputs": ("control_image",)}),
        (False, {"device": "cpu"}),
        (False, {"search": True}),
        (False, {"search": False}),
        (False, {"compiled": True}),
        (False, {"trained": ("dit", "dit_2")}),
        (False, {"trained": ("text_encoder",)}),
        (False, {"inputs": ("input_image",)}),
        (False, {"sides": ("template_model",)}),
    ],
)
def test_a_graph_is_taken_for_static_where_every_row_computes_with_the_same_weights(static, settings):
    assert has_static_graph(*plan(**settings)) is static
