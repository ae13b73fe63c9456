"""`--fit` takes the cheapest lever that suffices, keeps what was given, and writes what it chose as plain options."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dsctl.app import main
from dsctl_core.commands.train import dry_run
from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.options import TrainOptions
from dsctl_core.progress import NoProgress
from dsctl_core.training.dry_run.estimate import estimate
from dsctl_core.training.dry_run.gpu_rules import CONTEXT, reserved
from dsctl_core.training.fit.choose import SPARE, choose
from dsctl_core.training.fit.fit import fit
from dsctl_core.training.fit.predict import BlockList, Prediction, Predictor
from dsctl_core.training.plan.plan import plan_training

RECOMPUTED = {"use_gradient_checkpointing": True}
AWAY = {**RECOMPUTED, "use_gradient_checkpointing_offload": True}
BLOCKS, SHARES = 10, {"": 1.0, "int8": 0.5, "nf4": 0.25}


def asked(**more: Any) -> TrainOptions:
    return TrainOptions(**{"model": "tiny", "dataset_base_path": "data", "output_path": "o", "lora_rank": 2, **more})


def predicted(
    weights: int, activations: int, stage_one: int = 0, encoder: str = "text_encoder"
) -> Callable[[TrainOptions], Prediction]:
    """Return a predictor of a model with these needs in bytes for one sample, of which recomputing leaves a tenth.

    Without the inputs of blocks a twentieth is left.
    """

    def predict(options: TrainOptions) -> Prediction:
        held = dict(part.split("=") for part in options.training.quantize)
        share = 0.1 if options.training.use_gradient_checkpointing else 1
        share /= 2 if options.training.use_gradient_checkpointing_offload else 1
        packed = weights * SHARES[held.get("dit", "")]
        kept, mine = (activations * each * options.training.batch_size for each in (1, share))
        own, lists = packed + mine, (BlockList(BLOCKS, 2, int(mine) // BLOCKS),)
        half = int(packed + (kept + mine) / BLOCKS)
        first, sizes = stage_one * SHARES[held.get(encoder, "")], (int(packed) // BLOCKS,) * BLOCKS
        return Prediction(int(max(own, first)), int(own), int(first), lists, (sizes,), encoder, half)

    return predict


@pytest.fixture(autouse=True)
def _with_nf4(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dsctl_core.training.fit.choose.require_library", lambda _: None)


@pytest.mark.parametrize(
    ("needs", "card", "chosen"),
    [
        ((100, 100), 300, {}),
        ((100, 100), 150, {"use_gradient_checkpointing": True, "gradient_checkpointing_blocks": 7}),
        ((100, 100), 120, {"use_gradient_checkpointing": True}),
        ((100, 100), 113, AWAY),
        ((100, 2000), 210, {**AWAY, "quantize": ("dit=int8",)}),
        ((100, 100), 70, {"use_gradient_checkpointing": True, "quantize": ("dit=int8",)}),
        ((100, 100), 40, {"use_gradient_checkpointing": True, "quantize": ("dit=nf4",)}),
        ((100, 100), 34, {**AWAY, "quantize": ("dit=nf4",)}),
        ((100, 100, 200), 150, {"quantize": ("text_encoder=int8",)}),
    ],
)
def test_the_cheapest_lever_that_suffices_is_taken(needs, card, chosen):
    found = choose(asked(), card * 1000, predicted(*(1000 * each for each in needs)))
    expected = {**chosen}
    if "text_encoder=int8" in chosen.get("quantize", ()):
        expected |= {"use_gradient_checkpointing": True, "gradient_checkpointing_blocks": 7}
    assert found.chosen == expected and found.peak <= card * 1000 * (1 - SPARE)
    assert {name: found.options.value_of(name) for name in expected} == expected
    assert found.reasons


def test_the_largest_encoder_is_packed_whatever_its_name():
    found = choose(asked(), 150_000, predicted(100_000, 20_000, 200_000, "text_encoder_2"))
    assert found.chosen == {"quantize": ("text_encoder_2=int8",)}
    assert found.reasons[0].startswith("quantize text_encoder_2: ")


def test_a_large_batch_is_split_into_as_many_samples_before_weights_lose_precision():
    found = choose(asked(batch_size=4), 125_000, predicted(100_000, 100_000))
    assert found.chosen == {**AWAY, "batch_size": 2, "gradient_accumulation_steps": 2}, "what is away costs less"
    kept = {"batch_size": 4, "use_gradient_checkpointing_offload": False}
    found = choose(asked(**kept), 125_000, predicted(100_000, 100_000))
    assert found.chosen == {"use_gradient_checkpointing": True, "batch_size": 1, "gradient_accumulation_steps": 4}
    grouped = choose(asked(**kept, group_by_prompt_length=True), 125_000, predicted(100_000, 100_000))
    assert not grouped.options.training.group_by_prompt_length, "batches of one have nothing to group"


def test_blocks_are_offloaded_where_formats_do_not_suffice_and_what_was_given_stays():
    given = asked(quantize="dit=int8", use_gradient_checkpointing=True, gradient_checkpointing_blocks=3)
    with pytest.raises(DsctlError, match="the run needs 15 kB at the least, and 14 kB of memory are to do"):
        choose(given, 14_000, predicted(100_000, 100_000))
    assert choose(given, 30_000, predicted(100_000, 100_000)).chosen == {"offload_blocks": 9}
    found = choose(asked(), 60_000, _without_formats)
    assert found.chosen == {"use_gradient_checkpointing": True, "offload_blocks": 8}
    stored = choose(asked(fp8_models="dit"), 60_000, predicted(100_000, 100_000))
    assert stored.chosen == found.chosen, "blocks stored in fp8 can wait, and are not packed anew"
    smallest = choose(asked(), 20_000, predicted(100_000, 100_000))
    assert smallest.chosen == {**AWAY, "quantize": ("dit=int8",), "offload_blocks": 10}
    with pytest.raises(DsctlError, match="at the least"):
        choose(asked(lora_rank=None, trainable_models="dit"), 50_000, predicted(100_000, 100_000))


def test_each_part_is_packed_or_not_whatever_is_given_or_stored_of_others():
    needs = predicted(100_000, 20_000, 180_000)
    stored = choose(asked(), 104_000, needs, stored={"dit"})
    assert stored.chosen == {**RECOMPUTED, "quantize": ("text_encoder=int8",), "offload_blocks": 3}
    given = choose(asked(quantize="text_encoder=nf4"), 100_000, needs)
    assert given.chosen == {**RECOMPUTED, "quantize": ("text_encoder=nf4", "dit=int8")}
    assert given.options.training.quantize == ("text_encoder=nf4", "dit=int8")
    with pytest.raises(DsctlError, match="the run needs 180 kB at the least"):
        choose(asked(), 104_000, needs, stored={"text_encoder"})


def test_an_encoder_that_is_there_in_training_is_packed_before_the_denoiser():
    def predict(options: TrainOptions) -> Prediction:
        alone = predicted(100_000, 20_000, 80_000)(options)
        both = alone.training + alone.stage_one
        return replace(alone, training=both, stage_one=0, peak=both, half=alone.half + alone.stage_one, resident=True)

    found = choose(asked(), 152_000, predict)
    assert found.chosen == {**RECOMPUTED, "quantize": ("text_encoder=int8",)}
    assert "text_encoder=int8: without a cache" in found.reasons[-1]
    tighter = choose(asked(), 110_000, predict)
    assert tighter.chosen == {**RECOMPUTED, "quantize": ("text_encoder=int8", "dit=int8")}
    stored = choose(asked(), 110_000, predict, stored={"dit"})
    assert stored.chosen == {**RECOMPUTED, "quantize": ("text_encoder=int8",), "offload_blocks": 6}


def test_what_waits_in_main_memory_is_said_with_its_size():
    found = choose(asked(), 113_000, predicted(100_000, 100_000))
    assert found.reasons[-1].endswith("the inputs of recomputed blocks, 5 kB, wait in main memory")
    assert found.peak == 105_000
    nowhere = {"use_gradient_checkpointing_offload": False, "quantize": "dit=int8", "offload_blocks": 0}
    with pytest.raises(DsctlError, match="the run needs 60 kB at the least"):
        choose(asked(**nowhere), 59_000, predicted(100_000, 100_000))


def _without_formats(options: TrainOptions) -> Prediction:
    whole = options.model_copy(update={"training": options.training.model_copy(update={"quantize": ()})})
    return predicted(100_000, 100_000)(whole)


@pytest.mark.parametrize(
    "more",
    [
        {"cache": False, **AWAY},
        {"cache": False, "quantize": "text_encoder=int8,dit=int8"},
        {"num_epochs": 2, "quantize": "text_encoder=int8,dit=int8"},
        {"num_epochs": 2, **RECOMPUTED, "gradient_checkpointing_blocks": 1},
        {"num_epochs": 2, **AWAY, "gradient_checkpointing_blocks": 2},
    ],
)
def test_short_models_predict_what_the_whole_model_takes(dataset_folder, more):
    """The embedded model has few blocks, so that both can be had in seconds."""
    options = asked(dataset_base_path=dataset_folder, mixed_precision="bf16", **more)
    plan = plan_training(options, NoProgress(), offline=True)
    try:
        whole = estimate(plan, card=2**40).memory
        found = Predictor(plan, 2**40).predict(options)
    finally:
        plan.accelerator.end_training()
    assert found.peak == pytest.approx(whole.peak, rel=0.01) and whole.peak > CONTEXT
    assert found.blocks > 2 and found.encoder == "text_encoder"
    assert found.stage_one == (reserved(whole.stage_one, 0) if plan.cached else CONTEXT)


def test_what_is_chosen_is_written_as_plain_options(dataset_folder, tmp_path, capsys):
    tight = CONTEXT + 80 * 2**20
    found = fit(asked(dataset_base_path=dataset_folder), tight, NoProgress())
    assert found.options.memory.fit is None and found.options.given("mixed_precision")
    assert set(found.chosen) <= set(found.options.given_names())
    words = [
        "train",
        "--model",
        "tiny",
        "--dataset-base-path",
        str(dataset_folder),
        "--lora-rank",
        "2",
        "--output-path",
        "o",
    ]
    assert main([*words, "--fit", "1", "--dry-run", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["device"] == "cuda" and facts["available_memory"] == 2**30 and facts["fits"]
    assert not Path("o").exists()
    for value in ("24", "auto"):
        assert main([*words, "--fit", value]) == 1 + 1
        assert f"--fit {value} has no effect without a GPU" in capsys.readouterr().err
    with pytest.raises(UsageError, match="--fit has no effect on a CPU"):
        dry_run(asked(fit="24", device="cpu", dry_run=True))
