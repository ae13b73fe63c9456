"""Asking, the first time that a template's code is to run, whether it may."""

from __future__ import annotations

from collections.abc import Iterable

from dsctl import out
from dsctl_core.errors import DsctlError
from dsctl_core.options.template import TemplateSource


def confirm_trust(templates: Iterable[TemplateSource], *, trusted: bool) -> None:
    """Ask for each template whose code nobody has agreed to yet, and keep a yes; a no is a DsctlError.

    Where there is no terminal nothing is asked: the library refuses such code.
    """
    if trusted:
        return
    import hashlib

    from dsctl_core.template.source import CODE, config_of, folder_of
    from dsctl_core.template.trust import remember, remembered

    for template in templates:
        code = folder_of(config_of(template.source)) / CODE
        digest = hashlib.sha256(code.read_bytes()).hexdigest()
        if digest in remembered():
            continue
        what = (f"{code.absolute()} is code: it can do whatever you can.", f"sha256 {digest}")
        agreed = out.ask("Run it, now and whenever it is just this code?", what)
        if agreed is False:
            raise DsctlError(f"{code} was not run", hint="read it, and answer yes to run it")
        if agreed:
            remember(digest)
