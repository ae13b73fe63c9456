"""Does several training runs, one after the other, in as many processes as it is started in."""

import json
import sys
from pathlib import Path

from accelerate.state import AcceleratorState

from dsctl_core.options import TrainOptions
from dsctl_core.progress import NoProgress
from dsctl_core.training import train


def main(file: Path) -> None:
    for options in json.loads(file.read_text()):
        AcceleratorState._reset_state(reset_partial_state=True)
        train(TrainOptions.model_validate(options), NoProgress())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
