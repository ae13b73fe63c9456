"""Options that trade time for memory, beside gradient checkpointing and fp8."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import BeforeValidator, Field

from dsctl_core.options.base import Count, Options, Takes, Text
from dsctl_core.options.effects import NO_DRY_RUN, Idle


def _checked_card(value: object) -> object:
    return value if value == "auto" else f"{float(str(value)):g}"


Card = Annotated[str, BeforeValidator(_checked_card), Takes("a number of GB, such as 24, or auto")]


class MemoryOptions(Options):
    """Blocks that are treated one at a time, compilation, attention."""

    panel: ClassVar[str] = "Memory and speed"
    idle: ClassVar[tuple[Idle, ...]] = (NO_DRY_RUN,)

    gradient_checkpointing_blocks: Count | None = Field(
        None,
        description="Checkpoint only this many of the repeated blocks; the others are evenly spread. Left out: all.",
    )
    offload_blocks: Annotated[int, Field(ge=0, le=2**31 - 1)] = Field(
        0, description="Blocks of the denoiser whose frozen weights wait in main memory until a GPU needs them."
    )
    compile: bool = Field(False, description="Compile the repeated blocks: a slow first step, then faster ones.")
    float8: bool = Field(
        False,
        description="With --compile: multiply the matrices of the denoiser's blocks in 8 bits, forward and backward, "
        "on GPUs that have float8 (RTX 40, L4, H100 and later). Needs torchao.",
    )
    attention_backend: Text | None = Field(
        None, description="How attention is computed, by diffusers' name for it. Left out: native, torch's own."
    )
    fit: Card | None = Field(
        None,
        description="Choose what makes the run fit a GPU of this many GB, or auto for the one that is here: blocks to "
        "recompute, and where their inputs wait, smaller batches, formats of frozen weights, blocks to offload. What "
        "is given stays.",
    )
    dry_run: bool = Field(
        False, description="Say what the run would take of memory and disk, without loading weights, and stop."
    )
    dry_run_nodes: Count | None = Field(
        None,
        description="With --dry-run: say what a run on so many machines reads, writes and asks of stores, and how long "
        "reading takes. Left out: 1.",
    )
