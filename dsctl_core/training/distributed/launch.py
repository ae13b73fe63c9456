"""Run a command in several processes of this machine with accelerate's launcher."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from signal import SIGTERM
from typing import TYPE_CHECKING, Any

from dsctl_core.errors import DsctlError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE = 900  # seconds that processes may take to write their state after a signal


@dataclass(frozen=True)
class Ended:
    """The failure of a launch: a `signal` from outside, or the exit of process `rank`, the first to fail."""

    signal: int | None = None
    rank: int | None = None
    exit_code: int = 1  # of that process; negative for a signal


def run_in_processes(
    module: str,
    words: Sequence[str],
    *,
    processes: int | None = None,
    config: Path | None = None,
    cpu: bool = False,
    environment: Mapping[str, str] | None = None,
) -> Ended | None:
    """Run `python -m module words...` in several processes, and return None if all of them succeed.

    Returns when all have ended. A signal is passed on to them, and they have PATIENCE seconds to end. Raises UsageError
    for more processes than GPUs, and DsctlError for a file that is no configuration.

    Args:
        module: the module to run.
        words: its command-line arguments.
        processes: the number of processes, or None to use `config`.
        config: accelerate's configuration file, which describes the processes.
        cpu: run on the CPU even if there are GPUs. Without a GPU the CPU is always used.
        environment: environment variables to add to those of the processes.
    """
    import torch
    import torch.distributed.run  # imported before its loggers are silenced
    from accelerate.commands.launch import launch_command_parser

    # Without a GPU accelerate needs MPI to start processes; configured as for GPUs, it uses torch's launcher.
    on_cpu = cpu or not torch.cuda.is_available()
    loaded = _read(config) if config is not None else None
    flags = ["--num_processes", str(processes)] if config is None else ["--config_file", str(config)]
    arguments = launch_command_parser().parse_args([*flags, "script"])
    arguments.module, arguments.training_script, arguments.training_script_args = True, module, list(words)
    if config is None:
        arguments.multi_gpu, arguments.num_machines = True, 1
        arguments.mixed_precision = arguments.dynamo_backend = "no"
        # Any free port, bound by the launcher itself, so that no other program can take it in between.
        arguments.standalone, arguments.main_process_port = True, 0
    arguments.shutdown_timeout = PATIENCE
    here = processes if loaded is None else _processes_here(loaded)
    if not on_cpu and here is not None and here > torch.cuda.device_count():
        raise UsageError(
            f"{here} processes are asked for, but this machine has {torch.cuda.device_count()} GPUs",
            hint="give one process for each GPU",
        )
    added = {**threads(here or 1, on_cpu), **(environment or {})}
    if on_cpu and (loaded is None or _kind(loaded) != "DEEPSPEED"):
        added["ACCELERATE_USE_CPU"] = "true"
    if "OMP_NUM_THREADS" in added:
        arguments.num_cpu_threads_per_process = int(added["OMP_NUM_THREADS"])
    with _set(added), _silent():
        return _outcome(arguments, config)


def threads(processes: int, on_cpu: bool) -> dict[str, str]:
    """Return the OpenMP environment variables for each of `processes` processes, without those that are already set.

    The cores are divided between the processes. On CPUs, waiting threads must sleep: threads that spin take the cores
    from the processes that they wait for, and a step takes many times as long.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = {"OMP_NUM_THREADS": str(max(cores // processes, 1))}
    if on_cpu:
        wanted["OMP_WAIT_POLICY"] = "PASSIVE"
    return {name: value for name, value in wanted.items() if name not in os.environ}


def _read(config: Path) -> Any:
    """Read a configuration file with accelerate."""
    import yaml
    from accelerate.commands.config.config_args import load_config_from_file

    if not config.is_file():
        raise DsctlError(f"--accelerate-config {config} does not exist", hint="examples/accelerate/ has some")
    try:
        loaded = load_config_from_file(str(config))
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError, OSError, yaml.YAMLError) as error:
        line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DsctlError(
            f"--accelerate-config {config} is no configuration of accelerate: {line}",
            hint="make one with `accelerate config --config_file FILE`, or take one of examples/accelerate/",
        ) from error
    if _kind(loaded) == "MULTI_CPU":
        raise UsageError(
            f"{config} asks for processes on CPUs, which accelerate starts by MPI alone",
            hint="give --num-processes and --device cpu instead",
        )
    return loaded


def _kind(loaded: Any) -> str:
    """Return the distributed_type of a configuration, which accelerate stores as a string or an enum member."""
    return str(getattr(loaded.distributed_type, "value", loaded.distributed_type))


def _processes_here(loaded: Any) -> int | None:
    """Return the number of processes that a configuration starts on this machine, or None if accelerate decides."""
    if (loaded.num_processes or -1) < 1:
        return None
    return max(loaded.num_processes // max(loaded.num_machines or 1, 1), 1)


def _outcome(arguments: Any, config: Path | None) -> Ended | None:
    import subprocess

    from accelerate.commands.launch import launch_command
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        launch_command(arguments)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        # Those that ended within the same look are all there: a process fails of another that was killed. SIGTERM is
        # how the others are ended then.
        killed = {number: each for number, each in error.failures.items() if 0 > each.exitcode != -SIGTERM}
        if failure.exitcode >= 0 and killed:
            rank, failure = next(iter(killed.items()))
        return Ended(rank=rank, exit_code=failure.exitcode)
    except SignalException as error:
        return Ended(signal=int(error.sigval))
    except subprocess.CalledProcessError as error:
        return Ended(rank=0, exit_code=error.returncode)
    except (ValueError, ImportError, ConnectionError) as error:
        raise DsctlError(
            f"accelerate cannot start the processes: {str(error).strip().splitlines()[0]}",
            hint="check --num-processes" if config is None else f"check {config}",
        ) from error
    return None


@contextmanager
def _set(added: Mapping[str, str]) -> Iterator[None]:
    """Add environment variables inside the context, and restore the environment at its end."""
    before = dict(os.environ)
    os.environ.update(added)
    try:
        yield
    finally:
        for name in set(os.environ) - set(before):
            del os.environ[name]
        os.environ.update(before)


@contextmanager
def _silent() -> Iterator[None]:
    """Silence the launcher's own error reports: the processes report their errors themselves."""
    loggers = [logging.getLogger(name) for name in ("torch.distributed", "accelerate")]
    quiet = [name for name in logging.root.manager.loggerDict if name.startswith("torch.distributed.elastic")]
    loggers += [logging.getLogger(name) for name in quiet]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
