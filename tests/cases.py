"""Many cases in one test: every one is tried, and those that failed are named, each with the reason."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest

MOST = 20  # failures that are shown whole


def try_each(
    cases: Iterable[tuple[Any, ...]], check: Callable[..., None], *, count: int | None = None, at_least: int = 1
) -> None:
    """Call `check(*case)` for every case; fail with a line for each that failed.

    There must be `count` cases; `at_least` so many where their number follows from the code, and may grow with it.
    """
    failed, total = [], 0
    for case in cases:
        total += 1
        try:
            check(*case)
        except (Exception, pytest.fail.Exception) as error:  # noqa: BLE001 - it is shown, and the test fails
            failed.append(f"{case}:\n    {type(error).__name__}: " + str(error).strip().replace("\n", "\n    "))
    if failed:
        rest = f"\n... and {len(failed) - MOST} more" if len(failed) > MOST else ""
        pytest.fail(f"{len(failed)} of {total} cases failed:\n" + "\n".join(failed[:MOST]) + rest, pytrace=False)
    assert total == count if count is not None else total >= at_least, f"{total} cases"
