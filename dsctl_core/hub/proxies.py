"""Say through which proxy a hub is reached, and refuse a proxy that the hub's library cannot use, by its variable."""

from __future__ import annotations

import importlib.util
import os
from urllib.parse import urlsplit
from urllib.request import proxy_bypass

from dsctl_core.errors import DsctlError

SCHEMES = ("http", "https", "socks5", "socks5h")
# hub -> (the module that its library needs for SOCKS, how to install it); huggingface_hub uses httpx, modelscope_hub
# uses requests.
SOCKS = {
    "huggingface": ("socksio", 'pip install "httpx[socks]"'),
    "modelscope": ("socks", 'pip install "requests[socks]"'),
}
ENDPOINTS = {
    "huggingface": ("HF_ENDPOINT", "https://huggingface.co"),
    "modelscope": ("MODELSCOPE_ENDPOINT", "https://modelscope.cn"),
}


def address_of(hub: str) -> str:
    """Return the address of a hub: that in its environment variable, else its own."""
    variable, usual = ENDPOINTS[hub]
    return (os.environ.get(variable) or usual).rstrip("/")


def proxy_of(address: str) -> tuple[str, str] | None:
    """Return (variable, proxy) of the environment that apply to `address`; None for a direct connection.

    A variable in lower case wins, as in the libraries.
    """
    parts = urlsplit(address)
    if not parts.hostname or proxy_bypass(parts.hostname):
        return None
    for name in (f"{parts.scheme}_proxy", "all_proxy"):
        for variable in (name, name.upper()):
            if os.environ.get(variable):
                return variable, os.environ[variable]
    return None


def without_password(proxy: str) -> str:
    """Return the URL of a proxy without the name and password that can be in it."""
    parts = urlsplit(proxy if "://" in proxy else f"//{proxy}")
    place = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{place}" if parts.scheme else place


def way_to(hub: str) -> str:
    """Return the address of a hub and the proxy in use, for messages."""
    address = address_of(hub)
    used = proxy_of(address)
    return address if used is None else f"{address}, through the proxy {without_password(used[1])} of {used[0]},"


def refuse_unusable_proxy(hub: str) -> None:
    """Raise a DsctlError if the proxy in the environment is of a kind that the library of `hub` cannot use."""
    used = proxy_of(address_of(hub))
    if hub == "huggingface" and used is None:
        # httpx opens a connection pool for each proxy in the environment, whether or not it will be used.
        names = [f"{each}_proxy" for each in ("https", "http", "all")]
        found = [each for name in names for each in (name, name.upper()) if os.environ.get(each)]
        used = (found[0], os.environ[found[0]]) if found else None
    if used is None:
        return
    variable, proxy = used
    scheme, separator, _ = proxy.partition("://")
    if separator and scheme.lower() not in SCHEMES:
        raise DsctlError(
            f"{variable} is {without_password(proxy)}, and {scheme} is no kind of proxy that can be used",
            hint=f"set {variable} to one of {', '.join(f'{each}://' for each in SCHEMES)}, or unset it",
        )
    module, install = SOCKS[hub]
    if separator and scheme.lower().startswith("socks") and importlib.util.find_spec(module) is None:
        raise DsctlError(
            f"{variable} is {without_password(proxy)}, a SOCKS proxy, for which a package is missing",
            hint=f"{install}, or unset {variable}",
        )
