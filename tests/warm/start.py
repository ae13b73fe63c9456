"""Starts the server of warm.server for a session of tests."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FOLDER = Path(__file__).parent


@contextmanager
def warm_python() -> Iterator[str]:
    """Yield the path of an interpreter whose processes are forks of one that has imported the libraries.

    Beside it in its folder is a `dsctl` of the same kind.
    """
    with tempfile.TemporaryDirectory(prefix="warm-") as name:
        folder = Path(name)  # short: the path of a socket must be
        for program in ("python", "dsctl"):
            text = f"#!{sys.executable} -IS\n{(FOLDER / 'client.py').read_text(encoding='utf-8')}"
            (folder / program).write_text(text, encoding="utf-8")
            (folder / program).chmod(0o755)
        environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
        environment["JE_ARROW_MALLOC_CONF"] = "background_thread:false"  # pandas' pyarrow would start a thread
        paths = [str(FOLDER.parents[1]), environment.get("PYTHONPATH", "")]
        server = subprocess.Popen(
            [sys.executable, "-m", "tests.warm.server", name],
            env={**environment, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
            cwd=FOLDER.parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert server.stdin is not None and server.stdout is not None
        try:
            assert server.stdout.readline() == "ready\n"
            yield str(folder / "python")
        finally:
            server.stdin.close()
            server.stdout.close()
            server.wait()
