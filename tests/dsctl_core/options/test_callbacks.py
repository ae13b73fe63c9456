"""Options of the callbacks: those without effect are refused, and lists can be written in every way."""

import pytest

from dsctl_core.errors import UsageError
from dsctl_core.options import TrainOptions
from dsctl_core.options.callbacks import ONLY_WITH_SAMPLES, CallbackOptions


def build(**values):
    return TrainOptions(**{"model": "m", "dataset_base_path": "d", "output_path": "o", "lora_rank": 4, **values})


@pytest.mark.parametrize("name", ONLY_WITH_SAMPLES)
def test_a_setting_of_samples_without_samples_is_refused(name):
    value = {"sample_prompt": "a cat", "sample_prompts_file": "p.txt", "sample_negative_prompt": "x"}.get(name, 16)
    given = {name: value}
    given |= (
        {"sample_width": 16} if name == "sample_height" else {"sample_height": 16} if name == "sample_width" else {}
    )
    with pytest.raises(UsageError, match="no effect without --sample-every"):
        CallbackOptions(**given)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"validation_every": 5}, "--validation-every has no effect without --validation-split"),
        ({"track_project": "mine"}, "--track-project has no effect without a tracker"),
        ({"track": "csv", "track_project": "mine"}, "--track-project has no effect without a tracker"),
        ({"track": "tensorbord"}, "unknown tracker 'tensorbord'"),
        ({"track": ["csv", "csv"]}, "--track names csv twice"),
        ({"validation_split": 1.0}, "--validation-split is 1.0, which is too large"),
        ({"sample_every": 5, "sample_height": 32}, "--sample-height 32 is given without --sample-width"),
        ({"sample_every": 5, "sample_prompt": " "}, "says nothing"),
        ({"sample_every": 5, "sample_prompt": "a", "sample_prompts_file": "p.txt"}, "are both given"),
    ],
)
def test_what_has_no_effect_or_no_meaning_is_refused(values, message):
    with pytest.raises(UsageError, match=message):
        CallbackOptions(**values)


def test_samples_of_a_cache_need_a_prompt_because_a_cache_has_no_captions():
    cached = {"model": None, "dataset_base_path": None, "from_cache": "c"}
    with pytest.raises(UsageError, match="a cache has no captions"):
        build(sample_every=5, **cached)
    assert str(build(sample_every=5, sample_prompt="a cat", **cached).callbacks.sample_prompt[0]) == "a cat"


@pytest.mark.parametrize("values", [{"track": "csv"}, {"sample_every": 5}, {"validation_split": 0.1}])
def test_the_first_stage_alone_has_nothing_to_show(values):
    with pytest.raises(UsageError, match="which trains nothing"):
        build(task="sft:data_process", lora_rank=None, **values)


def test_prompts_keep_their_commas_and_trackers_are_split_at_them():
    options = build(sample_every=1, sample_prompt=["a cat, asleep", "a dog"], track="csv, tensorboard")
    assert options.flat_values("json")["sample_prompt"] == ["a cat, asleep", "a dog"]
    assert [tracker.name for tracker in options.callbacks.track] == ["csv", "tensorboard"]
