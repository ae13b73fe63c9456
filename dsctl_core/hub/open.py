"""Open a hub by its name. The library of a hub is imported only when that hub is opened."""

from __future__ import annotations

from dsctl_core.hub.proxies import refuse_unusable_proxy
from dsctl_core.hub.remote import Hub


def open_hub(source: str, token: str | None = None) -> Hub:
    """Return the hub called `source`; its library is imported here. A proxy that it cannot use is a DsctlError."""
    refuse_unusable_proxy(source)
    if source == "huggingface":
        from dsctl_core.hub.huggingface import HuggingFace

        return HuggingFace(token)
    from dsctl_core.hub.modelscope import ModelScope

    return ModelScope(token)
