"""Write a state in a thread, while training goes on, in one process or in several that must agree on the outcome."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from dsctl_core.errors import DsctlError

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch.distributed import ProcessGroup

T = TypeVar("T")


class Writing:
    """A thread that calls `write`. It does not keep the process alive: a state that is not whole does not count."""

    def __init__(self, write: Callable[[], None]) -> None:
        self._write = write
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="dsctl-state", daemon=True)
        self._thread.start()

    @property
    def ended(self) -> bool:
        """Whether the thread has ended, well or not."""
        return not self._thread.is_alive()

    def wait(self, seconds: float | None = None) -> None:
        """Wait for the end of the thread, at most `seconds`."""
        self._thread.join(seconds)

    def result(self) -> None:
        """Wait for the end of the thread; raise its error."""
        self.wait()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            self._write()
        except BaseException as error:  # noqa: BLE001 - it is raised where the run waits for the state
            self._error = error


def own_group(accelerator: Accelerator) -> ProcessGroup:
    """Return a group of all processes that talks over the CPU, beside what they do in training; called by all."""
    from torch import distributed

    limit = None if accelerator.init_handler is None else accelerator.init_handler.timeout
    return distributed.new_group(backend="gloo", timeout=limit)


def shared(group: ProcessGroup | None, act: Callable[[], T]) -> T:
    """Return what `act` returns in the first process of `group`, which alone calls it, in all of them.

    A DsctlError that it raises there is raised in all. Without a group, this process is the first.
    """
    if group is None:
        return act()
    from torch import distributed

    outcome: list[Any] = [None, None]
    if group.rank() == 0:
        try:
            outcome[0] = act()
        except DsctlError as error:
            outcome[1] = (error.problem, error.hint)
    distributed.broadcast_object_list(outcome, src=0, group=group)
    value, failed = outcome
    if failed is not None:
        raise DsctlError(failed[0], hint=failed[1])
    return value
