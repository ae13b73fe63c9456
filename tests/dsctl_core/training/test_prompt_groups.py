"""--group-by-prompt-length: what attention is given, that a run goes on with the same batches, and who is refused."""

from __future__ import annotations

import pytest

from dsctl_core.commands.train import train
from dsctl_core.errors import UsageError
from dsctl_core.families import load_family
from dsctl_core.files.safetensors import read_safetensors
from dsctl_core.stages.sample import collate
from dsctl_core.training.model.task_module import TaskModule
from dsctl_core.training.plan.grouping import refuse_groups
from tests.dsctl_core.training.conftest import picture
from tests.dsctl_core.training.test_data_options import Notes
from tests.dsctl_core.training.test_run import options

CAPTIONS = ("red", "red", "a green one", "a green one", "two green ones on a table", "a wall")


@pytest.fixture
def folder(tmp_path):
    """Six pictures of one size, with prompts of several lengths."""
    made = tmp_path / "pictures"
    made.mkdir()
    for number, caption in enumerate(CAPTIONS):
        picture(seed=number).save(made / f"{number}.png")
        (made / f"{number}.txt").write_text(caption)
    return made


@pytest.fixture
def masks(monkeypatch):
    """Notes of each batch whether its prompts are masked."""
    noted, forward = [], TaskModule.forward

    def watched(module, data):
        batch = collate([row["_cached"] for row in data], module.padded)
        noted.append(batch["posi.prompt_embeds_mask"] is not None)
        return forward(module, data)

    monkeypatch.setattr(TaskModule, "forward", watched)
    return noted


def test_batches_of_one_length_have_no_mask_and_a_resumed_run_has_the_same(tiny_folder, folder, tmp_path, masks):
    settings = {"batch_size": 2, "save_steps": 3, "max_steps": 6}
    train(options(tiny_folder, folder, tmp_path / "plain", **settings))
    plain, notes = list(masks), Notes()
    masks.clear()
    grouped = {**settings, "group_by_prompt_length": True}
    whole = train(options(tiny_folder, folder, tmp_path / "grouped", **grouped), notes)
    assert sum(masks) == 2 < sum(plain), "of three batches of an epoch, one has the rest"
    assert "Prompts: 67% of the samples are in batches of one length, which need no attention mask" in notes.notes
    state = tmp_path / "grouped" / "state" / "step-3"
    again = train(options(tiny_folder, folder, tmp_path / "again", **grouped, resume=str(state)))
    first, second = (read_safetensors(each.checkpoint)[0] for each in (whole, again))
    assert all(first[name].equal(second[name]) for name in first)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"batch_size": 2, "cache": False}, "the prompts of this run are encoded at each step"),
        ({"batch_size": 5}, "no effect: no 5 prompts of one size have one length"),
        ({}, "no effect on batches of one sample"),
    ],
)
def test_where_it_would_make_no_other_batches_it_is_refused(tiny_folder, folder, tmp_path, settings, problem):
    with pytest.raises(UsageError, match=problem):
        train(options(tiny_folder, folder, tmp_path / "out", group_by_prompt_length=True, max_steps=6, **settings))


def test_models_that_mask_no_prompts_are_refused():
    for name in ("qwen-image", "qwen-image-edit", "z-image"):
        refuse_groups(load_family(name), cached=True)
    for name in ("flux1", "flux2", "wan"):
        with pytest.raises(UsageError, match="whose prompts are never masked"):
            refuse_groups(load_family(name), cached=True)
