"""In how many processes a command runs, and who starts them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from dsctl_core.options.base import Alternative, Count, Options

MOST_MINUTES = 60 * 24 * 365  # torch keeps the time in nanoseconds of 64 bits


class ProcessCountOptions(Options):
    """The number of processes that share the work."""

    panel: ClassVar[str] = "Several processes"

    num_processes: Count | None = Field(
        None, description="Processes to start on this machine, one for each GPU. Left out: this one alone."
    )
    process_timeout: Annotated[float, Field(gt=0, le=MOST_MINUTES)] = Field(
        60.0, description="Minutes that a process waits for the others before the run fails."
    )


class ProcessOptions(ProcessCountOptions):
    """The number of processes that share the work, or the file of accelerate that has it."""

    panel: ClassVar[str] = "Several processes"
    exclusive: ClassVar[tuple[Alternative, ...]] = (("num_processes", "accelerate_config"),)

    accelerate_config: Path | None = Field(
        None,
        description="Start the processes that this file of `accelerate config` describes: FSDP2, DeepSpeed, nodes.",
    )
