"""The worker's end of a benchmark: do a round when run.py asks for one, and tell what it took."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any


class MicroBatches:
    """A line of JSON to run.py for `ready` and for each round; a line "go" from it starts the next round.

    Between rounds the process sleeps, so that the other side of the comparison has the machine for itself. What
    libraries print goes to standard error.
    """

    def __init__(self, device: str) -> None:
        self.channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        self.device = device
        self.began = self.began_cpu = 0.0

    def ready(self) -> None:
        """Say that everything is loaded, and wait for the first round."""
        import torch

        name = torch.cuda.get_device_name(self.device) if self.device != "cpu" else "cpu"
        self._tell(device=name, threads=torch.get_num_threads())

    def done(self, **facts: Any) -> None:
        """Say how long the round took, and wait for the next one; ends the process when there is none."""
        memory = self._finish_device_work()
        cpu = time.process_time() - self.began_cpu
        self._tell(seconds=time.perf_counter() - self.began, cpu_seconds=cpu, device_bytes=memory, **facts)

    def repeat(self, work: Callable[[int], dict[str, Any]]) -> None:
        """Do `work` (given the round's number, from 0) as often as it is asked for."""
        self.ready()
        number = 0
        while True:
            self.done(**work(number))
            number += 1

    def _tell(self, **facts: Any) -> None:
        print(json.dumps(facts), file=self.channel, flush=True)
        if sys.stdin.readline().strip() != "go":
            raise SystemExit(0)
        self.began, self.began_cpu = time.perf_counter(), time.process_time()

    def _finish_device_work(self) -> int:
        if self.device == "cpu":
            return 0
        import torch

        torch.cuda.synchronize(self.device)
        return torch.cuda.max_memory_allocated(self.device)


def main(cases: dict[str, Callable[[dict[str, Any], MicroBatches], None]]) -> None:
    """Run the case that the command line names, with the settings that follow it as JSON."""
    settings = json.loads(sys.argv[2])
    cases[sys.argv[1]](settings, MicroBatches(settings["device"]))
