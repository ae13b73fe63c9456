"""Runs Python programs as forks of one process that has imported the heavy libraries already.

`python -m tests.warm.server FOLDER` listens on FOLDER/socket. client.py, put there as an interpreter, hands over its
words, environment, folder and open files, and ends as the fork does. A fork of a process without threads is a process
of its own in all that the tests look at: its memory, its generators, its signals, its end. Ends when stdin does.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import sys
from pathlib import Path
from typing import Any

LIBRARIES = (
    "torch.distributed.run",
    "torch.distributed.fsdp",
    "torch.utils.flop_counter",
    "accelerate.commands.launch",
    "diffusers.hooks",
    "peft",
    "pandas",
    "dsctl.commands.train",
    "dsctl.commands.infer",
    "dsctl_core.commands.train",
    "dsctl_core.commands.infer",
    "dsctl_core.template",
)
THREADS = "OMP_NUM_THREADS"


def import_libraries() -> None:
    """Import what a training or an inference imports, and check that no thread was started by it."""
    for name in LIBRARIES:
        importlib.import_module(name)
    from dsctl_core.checkpoint.build import component_class
    from dsctl_core.families import families, load_family, pipeline_class

    for name in families():
        family = load_family(name)
        pipeline_class(family)
        for component in family.components:
            component_class(component)
    tasks = Path("/proc/self/task")
    if tasks.is_dir() and len(list(tasks.iterdir())) > 1:
        raise SystemExit("a process with threads must not be forked")
    os.fsync = lambda _: None  # as in tests/conftest.py
    gc.collect()
    gc.freeze()


def run_program(words: list[str]) -> None:
    """Do what `python words...` does: a module, a script or a text of code."""
    while words[0] == "-u":
        words = words[1:]
    kind, *rest = words
    if kind == "-m":
        sys.argv, sys.path[0] = rest, str(Path.cwd())
        sys.modules.pop(rest[0], None)  # as in a process in which nothing has imported it yet
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv, sys.path[0] = ["-c", *rest[1:]], ""
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    elif not kind.startswith("-"):
        sys.argv, sys.path[0] = words, str(Path(kind).parent)
        runpy.run_path(kind, run_name="__main__")
    else:
        raise SystemExit(f"no warm Python for {words}")


def become(request: dict[str, Any], files: list[int], interpreter: str) -> None:
    """Take over the environment, the folder and the open files of the one who asks, and run its program."""
    for number, file in enumerate(files):
        os.dup2(file, number, inheritable=True)
        os.close(file)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    known = set(sys.path)
    sys.path[1:1] = [each for each in os.environ.get("PYTHONPATH", "").split(os.pathsep) if each and each not in known]
    sys.executable = interpreter
    import numpy as np
    import torch

    np.random.seed()  # as in a process of its own; Python's generator is seeded anew by the fork itself
    torch.default_generator.seed()
    if torch.get_num_threads() != int(os.environ.get(THREADS, torch.get_num_threads())):
        torch.set_num_threads(int(os.environ[THREADS]))
    run_program(request["words"])


class Server:
    """The forks, and the connections of those who wait for their end."""

    def __init__(self, folder: Path) -> None:
        self.interpreter = str(folder / "python")
        self.listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listening.bind(str(folder / "socket"))
        self.listening.listen(64)
        self.ended, self.told = os.pipe()
        os.set_blocking(self.told, False)
        self.selector = selectors.DefaultSelector()
        self.running: dict[int, socket.socket] = {}

    def serve(self) -> dict[str, Any] | None:
        """Fork until stdin ends; in a fork, return what it is to be."""
        for waited in (self.listening, sys.stdin, self.ended):
            self.selector.register(waited, selectors.EVENT_READ)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal, it is for pytest
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self.told, warn_on_full_buffer=False)
        while True:
            for key, _ in self.selector.select():
                if key.fileobj is sys.stdin:
                    return None
                if key.fileobj is self.listening:
                    request = self._fork()
                    if request is not None:
                        return request
                elif key.fileobj is self.ended:
                    os.read(self.ended, 1024)
                    self._reap()
                else:
                    self._pass_on(key.fileobj)

    def _fork(self) -> dict[str, Any] | None:
        connection, _ = self.listening.accept()
        text, files, *_ = socket.recv_fds(connection, 1 << 20, 3)
        while not text.endswith(b"\n"):
            text += connection.recv(1 << 20)
        process = os.fork()
        if process == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            for waiting in (self.listening, connection, *self.running.values()):
                waiting.close()
            self.selector.close()
            os.close(self.ended)
            os.close(self.told)
            return {**json.loads(text), "files": files}
        for file in files:
            os.close(file)
        self.running[process] = connection
        self.selector.register(connection, selectors.EVENT_READ)
        return None

    def _reap(self) -> None:
        """Tell those who wait how their processes ended."""
        for process, connection in list(self.running.items()):
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                del self.running[process]
                with contextlib.suppress(KeyError):
                    self.selector.unregister(connection)
                with contextlib.suppress(OSError):
                    connection.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))
                connection.close()

    def _pass_on(self, connection: Any) -> None:
        """Send a process the signals that came for the one who waits; kill it when that one is gone."""
        process = next((each for each, waiting in self.running.items() if waiting is connection), None)
        if process is None:  # it has ended in this very round
            return
        try:
            numbers = connection.recv(64)
        except OSError:
            numbers = b""
        if not numbers:
            self.selector.unregister(connection)
        for number in numbers or [signal.SIGKILL]:
            os.kill(process, number)


def main() -> None:
    """Listen, fork, and in a fork run its program."""
    folder = Path(sys.argv[1])
    import_libraries()
    server = Server(folder)
    print("ready", flush=True)  # noqa: T201 - to the one who started it
    request = server.serve()
    if request is None:
        for process in server.running:
            os.kill(process, signal.SIGKILL)
        return
    become(request, request["files"], server.interpreter)


if __name__ == "__main__":
    main()
