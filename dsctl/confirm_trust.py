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
    from dsctl_core.commands.trust import trust_code, unconfirmed_code

    for code in unconfirmed_code(templates):
        what = (f"{code.file.absolute()} is code: it can do whatever you can.", f"sha256 {code.sha256}")
        agreed = out.ask("Run it, now and whenever it is just this code?", what)
        if agreed is False:
            raise DsctlError(f"{code.file} was not run", hint="read it, and answer yes to run it")
        if agreed:
            trust_code(code)
