"""Only the assignment of TEMPLATE_MODEL_PATH changes, or the code is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from dsctl_core.errors import DsctlError
from dsctl_core.template.rewrite import with_weights

CODE = Path("model.py")

REWRITTEN = {
    "plain": (b"a = 1\nTEMPLATE_MODEL_PATH = None\nb = 2\n", b'a = 1\nTEMPLATE_MODEL_PATH = "w"\nb = 2\n'),
    "a comment stays": (b"TEMPLATE_MODEL_PATH  =  'x'  # why\n", b'TEMPLATE_MODEL_PATH  =  "w"  # why\n'),
    "several lines": (b'TEMPLATE_MODEL_PATH = [\n  "a",\n  "b",\n]\nb = 2', b'TEMPLATE_MODEL_PATH = "w"\nb = 2'),
    "an annotation": (b"TEMPLATE_MODEL_PATH: str | None = None\r\n", b'TEMPLATE_MODEL_PATH: str | None = "w"\r\n'),
    "umlauts before it": (
        "ä = 'ö'; TEMPLATE_MODEL_PATH = 'ü'; b = 'ß'".encode(),
        "ä = 'ö'; TEMPLATE_MODEL_PATH = \"w\"; b = 'ß'".encode(),
    ),
    "a byte order mark": (b"\xef\xbb\xbfTEMPLATE_MODEL_PATH = None", b'\xef\xbb\xbfTEMPLATE_MODEL_PATH = "w"'),
    "missing": (b"a = 1\n", b'a = 1\nTEMPLATE_MODEL_PATH = "w"\n'),
    "missing, no newline": (b"a = 1", b'a = 1\nTEMPLATE_MODEL_PATH = "w"\n'),
    "missing, of Windows": (b"a = 1\r\nb = 2", b'a = 1\r\nb = 2\r\nTEMPLATE_MODEL_PATH = "w"\r\n'),
    "in a text": (b"'TEMPLATE_MODEL_PATH = 3'\n", b"'TEMPLATE_MODEL_PATH = 3'\nTEMPLATE_MODEL_PATH = \"w\"\n"),
}


@pytest.mark.parametrize("kind", REWRITTEN)
def test_nothing_but_the_value_changes(kind: str) -> None:
    before, after = REWRITTEN[kind]
    assert with_weights(CODE, before, "w") == after


def test_shards_become_a_list() -> None:
    assert with_weights(CODE, b"TEMPLATE_MODEL_PATH = None\n", ["a", "b"]) == b'TEMPLATE_MODEL_PATH = ["a", "b"]\n'


REFUSED = {
    "twice": (b"TEMPLATE_MODEL_PATH = None\nTEMPLATE_MODEL_PATH = 'a'\n", r"2 times \(lines 1, 2\)"),
    "in a branch": (b"if 1:\n  TEMPLATE_MODEL_PATH = None\n", "line 2, sets TEMPLATE_MODEL_PATH in a branch"),
    "with another": (b"a = TEMPLATE_MODEL_PATH = None\n", "together with another name"),
    "in a tuple": (b"TEMPLATE_MODEL_PATH, a = None, 1\n", "together with another name"),
    "only declared": (b"TEMPLATE_MODEL_PATH: str\n", "in a branch or together"),
    "added to": (b"TEMPLATE_MODEL_PATH += 'a'\n", "together with another name"),
    "deleted": (b"TEMPLATE_MODEL_PATH = 1\ndel TEMPLATE_MODEL_PATH\n", "2 times"),
    "another encoding": ("# -*- coding: latin-1 -*-\na = 'ä'\n".encode("latin-1"), "not valid Python in UTF-8"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_would_be_a_guess_is_refused(kind: str) -> None:
    code, said = REFUSED[kind]
    with pytest.raises(DsctlError, match=said) as caught:
        with_weights(CODE, code, "w")
    assert caught.value.hint
