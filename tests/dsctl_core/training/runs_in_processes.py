"""Does several training runs, one after the other, in as many processes as it is started in."""

import json
import sys
from pathlib import Path

from accelerate.state import AcceleratorState, PartialState

from dsctl_core.commands.train import train
from dsctl_core.options import TrainOptions
from dsctl_core.progress import NoProgress


def main(file: Path) -> None:
    # One group of processes serves all runs; a second one would meet what the first left at the rendezvous.
    PartialState.destroy_process_group = lambda self, group=None: None
    for options in json.loads(file.read_text()):
        AcceleratorState._reset_state(reset_partial_state=True)
        train(TrainOptions.model_validate(options), NoProgress())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
