"""The command line as a function."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dsctl.app import main
from tests.dsctl.running import Run


@pytest.fixture
def dsctl(capsys: pytest.CaptureFixture[str]) -> Callable[..., Run]:
    """Run `dsctl` with the words given, in this process."""

    def run(*words: object) -> Run:
        capsys.readouterr()
        code = main([str(word) for word in words])
        printed = capsys.readouterr()
        return Run(code, printed.out, printed.err)

    return run
