"""Files are read to their end, once, and only where each key stands once."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from dsctl_core.errors import DsctlError
from dsctl_core.imports.formats import read_configs
from tests.dsctl_core.imports.making import process, write


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (process().replace("steps: 100", "steps: 2000\n      steps: 3000"), "the key steps stands twice, in lines"),
        ("config: {process: [{1: a, '1': b}]}", "the key 1 stands twice, in lines 1 and 1"),
        ("a: " + "[" * 50_000 + "]" * 50_000, "nested more than 64 levels deep"),
        ("- " * 50_000, "nested more than 64 levels deep"),
        ("a: " + "x" * 2**20, "larger than 1048576 bytes"),
    ],
)
def test_a_yaml_file_that_says_two_things_or_has_no_end_is_refused_at_once(text: str, said: str):
    began = time.monotonic()
    with pytest.raises(DsctlError, match=said):
        read_configs(write({"a.yaml": text}))
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("suffix", ["", ".yaml", ".toml", ".json", ".sh"])
def test_only_regular_files_are_read(suffix: str):
    Path(f"zero{suffix}").symlink_to("/dev/zero")
    os.mkfifo(f"pipe{suffix}")
    for name, what in (("zero", "device"), ("pipe", "pipe")):
        with pytest.raises(DsctlError, match=f"{name}{suffix} cannot be read: it is a {what}, not a file"):
            read_configs([Path(f"{name}{suffix}")])
