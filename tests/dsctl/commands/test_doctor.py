"""`dsctl doctor`: what it shows, and an exit code that a script can use."""

from __future__ import annotations

import pytest

from dsctl_core.version import __version__
from tests.dsctl.running import Dsctl


def test_the_report_has_every_section(dsctl: Dsctl):
    run = dsctl("doctor")
    assert run.code == 0
    assert run.out.endswith("no problem found\n")
    for part in (
        "versions",
        "torch",
        "devices",
        "cpu",
        "attention",
        "torch sdpa",
        "memory",
        "free of",
        "disk",
        "models",
    ):
        assert part in run.out
    assert "hubs" not in run.out


def test_the_report_as_json(dsctl: Dsctl):
    report = dsctl("doctor", "--json").json
    assert report["versions"]["dsctl"] == __version__
    assert report["problems"] == []
    assert report["hubs"] == {}


def test_a_problem_makes_it_exit_1(dsctl: Dsctl, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("dsctl_core.commands.doctor.PACKAGES", ("torch", "no-such-package"))
    run = dsctl("doctor")
    assert run.code == 1
    assert run.out.endswith("problem: no-such-package is not installed\n")
    assert dsctl("doctor", "--json").json["problems"] == ["no-such-package is not installed"]


def test_the_hubs_are_asked_when_told_to(dsctl: Dsctl, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        "dsctl_core.commands.doctor.reachable_hubs", lambda: {"one": "reachable", "two": "two.example: no route"}
    )
    run = dsctl("doctor", "--hub", "--json")
    assert run.code == 1
    assert run.json["hubs"]["one"] == "reachable"
    assert run.json["problems"] == ["two cannot be reached: two.example: no route"]
