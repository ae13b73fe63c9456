"""`--fit`: plan a run, choose its levers by dry runs of short models, and return its options as plain ones."""

from __future__ import annotations

import torch

from dsctl_core.checkpoint.packed import stored_formats
from dsctl_core.errors import UsageError
from dsctl_core.options import TrainOptions
from dsctl_core.progress import Progress
from dsctl_core.readable import readable_bytes
from dsctl_core.training.dry_run.process_memory import available_memory
from dsctl_core.training.fit.choose import Fit, choose, with_values
from dsctl_core.training.fit.predict import Predictor
from dsctl_core.training.plan.plan import plan_training

GB = 2**30  # GPUs are sold by it: one of 24 GB has 24 GiB


def fitted(options: TrainOptions, progress: Progress) -> TrainOptions:
    """Return `options` without `--fit`, and with the levers that it chooses; those without `--fit` as they are.

    Raises UsageError where there is no GPU, and DsctlError for a run that no lever makes fit.
    """
    card = options.memory.fit
    if card is None:
        return options
    if not torch.cuda.is_available() and (card == "auto" or not options.memory.dry_run):
        raise UsageError(
            f"--fit {card} has no effect without a GPU",
            hint="give --fit 24 --dry-run to see what a run on a GPU of 24 GB would need",
        )
    found = fit(options, card_bytes(card), progress)
    for reason in found.reasons:
        progress.note(f"Fits {card_name(card)} at {readable_bytes(found.peak)}: {reason}")
    return found.options


def fit(options: TrainOptions, card: int, progress: Progress) -> Fit:
    """Return the choice for a GPU of `card` bytes. Raises UsageError for several processes."""
    plain = {"fit": None} if options.given("mixed_precision") else {"fit": None, "mixed_precision": "bf16"}
    asked = with_values(options, plain)
    plan = plan_training(asked, progress, offline=True)
    try:
        if plan.accelerator.num_processes > 1:
            raise UsageError(
                f"--fit chooses for one GPU, and there are {plan.accelerator.num_processes} processes",
                hint="run it once with --fit and --dry-run, and give what it chose in place of --fit",
            )
        stored = stored_formats(plan.model.family, plan.model.configs_of(None))
        return choose(asked, card, Predictor(plan, card).predict, stored={*stored, *plan.use.edits.fp8})
    finally:
        plan.accelerator.end_training()


def card_bytes(card: str) -> int:
    """Return the memory of the GPU that `--fit` names, in bytes."""
    return available_memory(torch.device("cuda")) if card == "auto" else int(float(card) * GB)


def card_name(card: str) -> str:
    """Return the GPU that `--fit` names for people."""
    return "the GPU" if card == "auto" else f"{card} GB"
