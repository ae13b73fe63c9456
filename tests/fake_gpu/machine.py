"""A GPU that is not there: fake CUDA tensors on any machine, with what torch asks about the device answered.

`load_device` must be called before torch is imported, so whatever uses this runs in a process of its own.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

GIB = 2**30
SOURCE = Path(__file__).with_name("machine.cpp")
COMPILERS = ("g++", "c++", "clang++")


def load_device(build: Path) -> None:
    """Compile machine.cpp into the folder `build`, unless it is there, and load it; torch with CUDA needs none of it.

    Raises RuntimeError without a C++ compiler.
    """
    spec = importlib.util.find_spec("torch")
    assert spec is not None and spec.origin is not None
    torch_folder = Path(spec.origin).parent
    if (torch_folder / "lib" / "libtorch_cuda.so").is_file():
        return
    version = (torch_folder / "version.py").read_bytes()
    library = build / f"machine-{hashlib.sha256(version + SOURCE.read_bytes()).hexdigest()[:16]}.so"
    if not library.is_file():
        _compile(torch_folder, library)
    ctypes.CDLL(str(library))


def _compile(torch_folder: Path, library: Path) -> None:
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise RuntimeError("a fake GPU needs a C++ compiler, and there is none: install g++")
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        made, libraries = Path(folder, "made.so"), torch_folder / "lib"
        flags = ["-O0", "-std=c++20", "-shared", "-fPIC", f"-I{torch_folder / 'include'}", f"-L{libraries}"]
        links = ["-lc10", "-ltorch_cpu", f"-Wl,-rpath,{libraries}"]
        subprocess.run([compiler, *flags, str(SOURCE), "-o", str(made), *links], check=True)
        made.replace(library)


@contextmanager
def pretended_gpu(memory: int = 80 * GIB) -> Iterator[None]:
    """Answer questions about the device as one GPU of `memory` bytes would, inside the context."""
    import torch

    from tests.fake_gpu.counting import pin_memory

    class Stream:
        """A stream: everything on it is done at once."""

        def __init__(self, *_: Any, **__: Any) -> None: ...

        def record_event(self, *_: Any) -> Stream:
            return self

        def wait_event(self, *_: Any) -> None: ...
        def wait_stream(self, *_: Any) -> None: ...
        def record(self, *_: Any) -> None: ...
        def wait(self, *_: Any) -> None: ...
        def synchronize(self) -> None: ...
        def query(self) -> bool:
            return True

        def __enter__(self) -> Stream:
            return self

        def __exit__(self, *_: Any) -> None: ...

    about = SimpleNamespace(
        total_memory=memory, name="a GPU that is not there", major=9, minor=0, multi_processor_count=1
    )
    answers: dict[str, Any] = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "is_bf16_supported": lambda *_, **__: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda *_: None,
        "get_device_properties": lambda *_: about,
        "get_device_capability": lambda *_: (9, 0),
        "mem_get_info": lambda *_: (memory, memory),
        "max_memory_allocated": lambda *_: 0,
        "manual_seed_all": lambda *_: None,
        "manual_seed": lambda *_: None,
        "get_rng_state_all": list,
        "synchronize": lambda *_: None,
        "empty_cache": lambda: None,
        "Stream": Stream,
        "Event": Stream,
        "stream": lambda each: each,
        "current_stream": lambda *_: Stream(),
    }
    with ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(patch.object(torch.cuda, name, answer))
        stack.enter_context(patch.object(torch.Tensor, "pin_memory", pin_memory))
        stack.enter_context(patch.object(torch.Tensor, "record_stream", lambda *_: None))
        stack.enter_context(patch("dsctl_core.memory.offload.pin", pin_memory))
        yield
