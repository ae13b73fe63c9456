"""One run of the tests' regression in as many processes as it is started in: FOLDER STEPS [RESUME] [SECONDS A STEP]."""

import sys
import time
from pathlib import Path

from dsctl_core.errors import DsctlError
from tests.dsctl_core.training.runs import Drawing, train


class Slow(Drawing):
    """Takes its time, so that a test can do something in the middle of a run."""

    seconds = 0.0

    def forward(self, data):
        time.sleep(self.seconds)
        return super().forward(data)


def main(folder: str, steps: str, resume: str = "", seconds: str = "0", save_steps: str = "5", batch: str = "2") -> int:
    """Train, and return the exit code."""
    Slow.seconds = float(seconds)
    try:
        train(
            Path(folder),
            module=Slow(),
            max_steps=int(steps),
            save_steps=int(save_steps),
            batch_size=int(batch),
            resume=resume or None,
        )
    except DsctlError as error:
        sys.stdout.write(f"{error.problem}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
