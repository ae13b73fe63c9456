"""A process of the warm interpreter is one as of any Python: words, files, memory, generators, signals, end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

MEMORY = "from dsctl_core.training.distributed.accelerator import peak_memory as peak"


def run(python: str, *words: str, **more: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([python, *words], capture_output=True, text=True, timeout=60, check=False, **more)


def both(python: str, code: str, *words: str, **more: object) -> list[str]:
    """Return what a warm and a cold process print for the same code."""
    done = [run(each, "-c", code, *words, **more) for each in (python, sys.executable)]
    assert [each.returncode for each in done] == [0, 0], [each.stderr for each in done]
    return [each.stdout for each in done]


def test_words_folder_environment_and_files_are_those_of_the_one_who_starts_it(python: str, tmp_path: Path):
    code = "import os, sys; print(sys.argv, os.getcwd(), dict(os.environ), sys.stdin.read(), __name__)"
    environment = {"PATH": "", "MINE": "x", "LC_CTYPE": "C.UTF-8"}
    warm, cold = both(python, code, "a", "b c", cwd=tmp_path, env=environment, input="hello")
    assert warm == cold
    assert str(tmp_path) in warm and "hello" in warm


def test_modules_and_scripts_are_run_as_python_runs_them(python: str, tmp_path: Path):
    (tmp_path / "beside.py").write_text("NAME = 'beside'\n")
    (tmp_path / "program.py").write_text("import beside, sys; print(beside.NAME, sys.argv[1:], __name__, __file__)\n")
    for words, folder in ((["-m", "program", "x"], tmp_path), ([str(tmp_path / "program.py"), "x"], Path("/"))):
        warm, cold = (run(each, *words, cwd=folder) for each in (python, sys.executable))
        assert warm.stdout == cold.stdout != ""
    assert "no warm Python for" in run(python, "-q").stderr


def test_the_dsctl_beside_it_is_dsctl(python: str):
    assert run(str(Path(python).parent / "dsctl"), "--version").stdout.startswith("dsctl ")


@pytest.mark.parametrize(
    ("code", "expected"),
    [("pass", 0), ("import sys; sys.exit(7)", 7), ("1 / 0", 1), ("import os; os.kill(os.getpid(), 9)", -9)],
)
def test_it_ends_as_its_program_does(python: str, code: str, expected: int):
    assert run(python, "-c", code).returncode == run(sys.executable, "-c", code).returncode == expected


def test_what_is_to_be_done_at_the_end_is_done(python: str):
    code = "import atexit, threading, time; atexit.register(print, 'end')\n"
    code += "threading.Thread(target=lambda: (time.sleep(0.2), print('thread'))).start()"
    assert run(python, "-c", code).stdout == "thread\nend\n"


WAIT = """
import os, signal, sys, time
def told(number, _):
    print("told", number, flush=True)
    sys.exit(5)
signal.signal(signal.SIGTERM, told)
print(os.getpid(), flush=True)
time.sleep(60)
"""


def test_a_signal_is_passed_on(python: str):
    with subprocess.Popen([python, "-c", WAIT], stdout=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        process.terminate()
        assert process.stdout.read() == f"told {int(signal.SIGTERM)}\n"
        assert process.wait(60) == 5


def test_a_process_does_not_outlive_the_one_who_waits_for_it(python: str):
    with subprocess.Popen([python, "-c", WAIT], stdout=subprocess.PIPE, text=True) as process:
        number = int(process.stdout.readline())
        process.kill()
        assert process.wait(60) == -signal.SIGKILL
    until = time.monotonic() + 60
    while Path(f"/proc/{number}").exists():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_libraries_are_there_without_a_thread_and_generators_are_its_own(python: str):
    code = "import sys; print(*('torch' in sys.modules, 'diffusers' in sys.modules))\n"
    code += "import threading, numpy, random, torch\n"
    code += "print(threading.active_count(), numpy.random.rand(), random.random(), torch.rand(1).item())"
    first, second = (run(python, "-c", code).stdout.split() for _ in range(2))
    assert first[:3] == second[:3] == ["True", "True", "1"]
    assert len(first) == len(second) == 6
    assert not set(first[3:]) & set(second[3:])


def test_its_memory_is_its_own(python: str):
    code = f"import torch; {MEMORY}; before = peak(); x = torch.ones(2**26); print((peak() - before) // 2**20)"
    for shown in both(python, code):
        assert 250 <= int(shown) <= 300  # 256 MiB of numbers
    block = "import torch; x = torch.ones(2**27)"
    assert run(python, "-c", block).returncode == 0
    peak = int(run(python, "-c", f"{MEMORY}; print(peak())").stdout)
    assert peak < 2**29, "of another process's memory nothing is left in it"


MEET = """
import sys, time
from pathlib import Path
Path(sys.argv[1]).touch()
while len(list(Path().iterdir())) < 4:
    time.sleep(0.01)
sys.exit(int(sys.argv[1]))
"""


def test_several_run_at_the_same_time(python: str, tmp_path: Path):
    started = [subprocess.Popen([python, "-c", MEET, str(n)], cwd=tmp_path) for n in range(4)]
    assert [process.wait(60) for process in started] == list(range(4))


def test_the_number_of_threads_is_the_one_that_is_asked_for(python: str):
    code = "import torch; print(torch.get_num_threads())"
    warm, cold = both(python, code, env={**os.environ, "OMP_NUM_THREADS": "2"})
    assert warm == cold == "2\n"
