"""Says how it was started, in a file of its own, and ends as it is told: `python -m ... FOLDER how`."""

import json
import os
import signal
import sys
import time
from pathlib import Path

NAMES = (
    "RANK",
    "WORLD_SIZE",
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "ACCELERATE_USE_CPU",
    "ACCELERATE_USE_FSDP",
    "MINE",
)


def main(folder: Path, how: str) -> None:
    rank = os.environ["RANK"]
    told = {name: os.environ[name] for name in NAMES if name in os.environ}
    (folder / f"{rank}.json").write_text(json.dumps(told))
    if how == "fail" and rank == "1":
        sys.exit(3)
    if how == "die" and rank == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "late":
        from dsctl_core.options.processes import ProcessCountOptions
        from dsctl_core.training.distributed.accelerator import make_accelerator

        accelerator = make_accelerator("cpu", "no", ProcessCountOptions(process_timeout=1 / 60))
        accelerator.wait_for_everyone()
        if rank == "1":
            time.sleep(5)
        try:
            accelerator.wait_for_everyone()
        except RuntimeError as error:
            (folder / f"{rank}.gave_up").write_text(str(error))
            os._exit(4)
    if how == "wait":

        def leave(*_: object) -> None:
            (folder / f"{rank}.stopped").touch()
            sys.exit(0)

        signal.signal(signal.SIGTERM, leave)
        (folder / f"{rank}.ready").touch()
        time.sleep(120)
        sys.exit("nobody stopped it")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
