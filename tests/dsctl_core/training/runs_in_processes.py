"""Does several training runs, one after the other, in as many processes as it is started in."""

import json
import os
import resource
import sys
import time
from pathlib import Path

from accelerate.state import AcceleratorState, PartialState

from dsctl_core.commands.train import train
from dsctl_core.errors import DsctlError
from dsctl_core.options import TrainOptions
from dsctl_core.progress import NoProgress
from dsctl_core.training.state.snapshot import Snapshots

FULL_DISK = "full_disk"  # among the options of a run: the second process cannot write its first state


def one_group() -> None:
    """Let one group of processes serve all runs; a second one would meet what the first left at the rendezvous."""
    PartialState.destroy_process_group = lambda self, group=None: None


def fail_on_a_full_disk(options: TrainOptions) -> None:
    """Train until the second process can write no more; put down what each of them said of it, and how soon."""
    save, rank, began = Snapshots.save, int(os.environ["RANK"]), time.monotonic()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def full(self: Snapshots, position: object) -> None:
        if rank == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (16, before[1]))
        save(self, position)

    Snapshots.save = full
    try:
        train(options, NoProgress())
    except DsctlError as error:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        told = {"problem": error.problem, "hint": error.hint, "seconds": time.monotonic() - began}
        options.output.output_path.with_name(f"{FULL_DISK}-{rank}.json").write_text(json.dumps(told))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        Snapshots.save = save


def main(file: Path) -> None:
    one_group()
    for asked in json.loads(file.read_text()):
        AcceleratorState._reset_state(reset_partial_state=True)
        full = asked.pop(FULL_DISK, False)
        options = TrainOptions.model_validate(asked)
        fail_on_a_full_disk(options) if full else train(options, NoProgress())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
