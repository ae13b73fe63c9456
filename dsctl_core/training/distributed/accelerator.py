"""Set up accelerate with the device and the precision of a run."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, InitProcessGroupKwargs, KwargsHandler

from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.memory.mps import has_mps, require_mps
from dsctl_core.options.processes import ProcessCountOptions

STATUS = Path("/proc/self/status")


def make_accelerator(
    device: str | None,
    precision: str | None,
    processes: ProcessCountOptions,
    usual: str | None = None,
    handlers: Sequence[KwargsHandler] = (),
    **settings: Any,
) -> Accelerator:
    """Set up accelerate on `device` (None: a GPU if there is one).

    The precision is `precision`, else that of accelerate's launcher, else `usual`, else what suits the device. A
    process waits for the others as long as `processes` says: torch's own limit for GPUs is 10 minutes, and one process
    may have more to encode, to sample or to write than the others. `handlers` and `settings` are those of Accelerator.
    """
    if device is not None and device.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(f"--device {device} is asked for, but torch sees no such GPU", hint="see dsctl doctor")
    if device == "mps":
        require_mps()
    chosen = precision or _launched_precision() or usual or default_precision(device)
    if chosen == "fp16" and (device == "cpu" or not torch.cuda.is_available()):
        raise UsageError("--mixed-precision fp16 needs a GPU", hint="use bf16 or no on a CPU")
    if device == "mps" and chosen != "no":
        raise UsageError(
            f"--device mps computes in float32, and {chosen} is asked for, by the cache or by a launcher",
            hint="give --mixed-precision no, and for a cache make it with that",
        )
    _forget_earlier_run()
    on_cpu = device == "cpu" or _on_cpus_of_a_launcher() or leaves_mps(device)
    group = InitProcessGroupKwargs(timeout=timedelta(minutes=processes.process_timeout))
    if on_cpu and launched_with("DEEPSPEED"):
        # With cpu=True accelerate ignores DeepSpeed; with a CPU backend it selects the CPU by itself.
        on_cpu, group.backend = False, "gloo"
    accelerator = Accelerator(
        cpu=on_cpu,
        mixed_precision=chosen,
        kwargs_handlers=[*handlers, group],
        **settings,
    )
    if processes.given("process_timeout") and accelerator.num_processes == 1:
        accelerator.end_training()
        raise UsageError(
            "--process-timeout is given, and this is one process, which waits for no other",
            hint="leave it out, or give --num-processes too",
        )
    if launched_with("DEEPSPEED") and accelerator.distributed_type != DistributedType.DEEPSPEED:
        raise DsctlError(
            "the processes were started for DeepSpeed, but accelerate has set up something else",
            hint="do not set ACCELERATE_USE_CPU",
        )
    return accelerator


def leaves_mps(device: str | None) -> bool:
    """Return whether there is an Apple GPU that is not used, as --device does not name it: accelerate would take it."""
    return device is None and not torch.cuda.is_available() and has_mps()


def _on_cpus_of_a_launcher() -> bool:
    """Return whether this is one of several processes without a GPU, for which accelerate needs cpu=True."""
    return "LOCAL_RANK" in os.environ and not torch.cuda.is_available()


def launched_with(engine: str) -> bool:
    """Return whether accelerate's launcher started this process with `engine`, "FSDP" or "DEEPSPEED"."""
    return os.environ.get(f"ACCELERATE_USE_{engine}", "false").lower() == "true"


def _launched_precision() -> str | None:
    """Return the precision of accelerate's configuration file, or None for "no", which may be just its default."""
    chosen = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    return chosen if chosen in ("bf16", "fp16") else None


def _forget_earlier_run() -> None:
    """Reset accelerate's state, so that a second run in this process can choose its own device and precision."""
    state = AcceleratorState._shared_state
    if state and state.get("num_processes", 1) == 1:
        AcceleratorState._reset_state(reset_partial_state=True)


def default_precision(device: str | None) -> str:
    """Return "bf16" on a GPU that supports it, else "no"."""
    on_gpu = device != "cpu" and torch.cuda.is_available()
    return "bf16" if on_gpu and torch.cuda.is_bf16_supported(including_emulation=False) else "no"


def peak_memory(device: torch.device | None = None) -> int:
    """Return the peak memory so far in bytes: of the GPU if there is one, else resident in this process.

    Of an Apple GPU, where `device` is one, it is what the driver has given: torch counts no peak there, but keeps what
    it was given.
    """
    if device is not None and device.type == "mps":
        return torch.mps.driver_allocated_memory()
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    if sys.platform == "win32":
        return 0
    # On Linux getrusage includes the peak of the parent process; not every sandbox has the exact file.
    lines = STATUS.read_text(encoding="ascii", errors="replace").splitlines() if STATUS.is_file() else []
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024
