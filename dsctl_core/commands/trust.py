"""Agreeing to run a template's code, before a command does: which code nobody has agreed to, and keeping a yes.

Needed before torch is, so nothing heavy is imported here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dsctl_core.options.template import TemplateSource
from dsctl_core.template.source import CODE, config_of, folder_of
from dsctl_core.template.trust import add_trusted_digest, trusted_digests


@dataclass(frozen=True)
class TemplateCode:
    """The file with the code of a template, and the SHA-256 of its bytes."""

    file: Path
    sha256: str


def unconfirmed_code(templates: Iterable[TemplateSource]) -> Iterator[TemplateCode]:
    """Yield the code of each template that nobody has agreed to, one after the other: a yes counts for the next.

    Raises DsctlError for a template that cannot be found.
    """
    for template in templates:
        file = folder_of(config_of(template.source)) / CODE
        code = TemplateCode(file, hashlib.sha256(file.read_bytes()).hexdigest())
        if code.sha256 not in trusted_digests():
            yield code


def trust_code(code: TemplateCode) -> None:
    """Keep on this machine that this very code may run."""
    add_trusted_digest(code.sha256)
