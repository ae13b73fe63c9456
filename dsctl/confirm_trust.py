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
    import hashlib

    from dsctl_core.template.source import CODE, config_of, folder_of
    from dsctl_core.template.trust import add_trusted_digest, trusted_digests

    for template in templates:
        code = folder_of(config_of(template.source)) / CODE
        digest = hashlib.sha256(code.read_bytes()).hexdigest()
        if digest in trusted_digests():
            continue
        lines = (f"{code.absolute()} is code: it can do whatever you can.", f"sha256 {digest}")
        answer = out.ask("Run it, now and in the future as long as it does not change?", lines)
        if answer is False:
            raise DsctlError(f"{code} was not run", hint="read it, and answer yes to run it")
        if answer:
            add_trusted_digest(digest)
