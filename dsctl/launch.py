"""Commands that run in several processes: `--num-processes` and `--accelerate-config`."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING

from dsctl import out, processes
from dsctl_core.errors import REQUEUE, DsctlError, UsageError

if TYPE_CHECKING:  # every command imports this module, most of them have no such options
    from dsctl_core.options.processes import ProcessCountOptions

STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM, REQUEUE)  # exit codes of processes that were told to stop

_words: ContextVar[Sequence[str]] = ContextVar("words")


@contextmanager
def given(words: Sequence[str]) -> Iterator[None]:
    """Remember the words of this run, to start others with."""
    token = _words.set(words)
    try:
        yield
    finally:
        _words.reset(token)


def in_processes(options: ProcessCountOptions, *, cpu: bool) -> bool:
    """Run this very command in the processes that `options` ask for, and return True; False if it is to run here.

    Raises SystemExit with the processes' exit code where they did not all end well.
    """
    config: Path | None = getattr(options, "accelerate_config", None)
    flag = "--accelerate-config" if config is not None else f"--num-processes {options.num_processes}"
    if config is None and options.num_processes is None:
        return False
    started_by = processes.launcher()
    if started_by == "dsctl":
        return False
    if started_by is not None:
        raise UsageError(
            f"{flag} is given, but {started_by} has started several processes already",
            hint="leave it out, or run `dsctl` by itself",
        )
    if config is None and options.num_processes == 1:
        return False
    with tempfile.TemporaryDirectory(prefix="dsctl-") as folder:
        code = _run(Path(folder), options.num_processes, config, cpu)
    if code != 0:
        raise SystemExit(code)
    return True


def _run(folder: Path, count: int | None, config: Path | None, cpu: bool) -> int:
    from dsctl_core.training.distributed.launch import run_in_processes

    ended = run_in_processes(
        "dsctl",
        _words.get(),
        processes=count,
        config=config,
        cpu=cpu,
        environment={processes.FOLDER: str(folder)},
    )
    if ended is None:
        return 0
    told = processes.endings(folder)
    # Of a process that was killed the others lose the connection, or are told to stop by the launcher.
    killed = ended.signal is None and ended.exit_code < 0
    follows = bool(told) and killed and (not told[0].expected or told[0].code in STOPPED)
    if told and told[0].problem is not None and not follows:
        (out.stopped if told[0].code in STOPPED else out.error)(told[0].problem, told[0].hint)
        return told[0].code
    if ended.signal is not None:
        # Stopped from outside; every process came to its end in its own way.
        out.note(f"stopped by {signal.Signals(ended.signal).name}")
        return max((each.code for each in told), default=128 + ended.signal)
    if killed:
        raise _killed(ended.rank, -ended.exit_code, trains=_command() == "train")
    raise DsctlError(
        f"process {ended.rank} ended with exit code {ended.exit_code}", hint="see what it printed above this line"
    )


def _command() -> str | None:
    return next((word for word in _words.get() if not word.startswith("-")), None)


def _killed(rank: int | None, number: int, *, trains: bool) -> DsctlError:
    """Return the error for process `rank`, which the signal `number` has ended without a word of its own."""
    again = "go on with --resume latest" if trains else "run the command again, which goes on from there"
    if number == signal.SIGKILL:
        return DsctlError(
            f"process {rank} was killed by SIGKILL (main memory may have been full)",
            hint=f"{again}; if the system's log says that memory ran out, with a smaller batch or fewer processes",
        )
    name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
    return DsctlError(f"process {rank} was killed by {name}", hint=f"see what it printed above this line; {again}")
