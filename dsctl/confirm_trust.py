"""Ask for permission before the code of a template runs for the first time."""

from __future__ import annotations

from collections.abc import Iterable

from dsctl import out
from dsctl_core.errors import DsctlError
from dsctl_core.options.template import TemplateSource


def confirm_trust(templates: Iterable[TemplateSource], *, trusted: bool) -> None:
    """Ask for each template whose code is not trusted yet, and store a yes; raise `DsctlError` for a no.

    Without a terminal there is no question, and the library refuses such code.
    """
    if trusted:
        return
    from dsctl_core.commands.trust import trust_code, unconfirmed_code

    for code in unconfirmed_code(templates):
        lines = (f"{code.file.absolute()} is code: it can do whatever you can.", f"sha256 {code.sha256}")
        answer = out.ask("Run it, now and in the future as long as it does not change?", lines)
        if answer is False:
            raise DsctlError(f"{code.file} was not run", hint="read it, and answer yes to run it")
        if answer:
            trust_code(code)
