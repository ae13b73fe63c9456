"""A proxy that cannot be used is refused by its variable; a hub that is not reached is named with its address."""

from __future__ import annotations

import importlib.util

import pytest

from dsctl_core.errors import DsctlError
from dsctl_core.hub.errors import explain
from dsctl_core.hub.open import open_hub
from dsctl_core.hub.proxies import proxy_of

VARIABLES = [f"{name}_proxy" for name in ("http", "https", "all", "no")]


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.parametrize(
    ("source", "install"),
    [("huggingface", 'pip install "httpx[socks]"'), ("modelscope", 'pip install "requests[socks]"')],
)
@pytest.mark.parametrize("variable", ["ALL_PROXY", "HTTPS_PROXY", "all_proxy"])
def test_a_socks_proxy_without_its_package_names_the_variable_and_the_package(monkeypatch, source, install, variable):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv(variable, "socks5://me:secret@127.0.0.1:1080")
    with pytest.raises(DsctlError, match=f"{variable} is socks5://127.0.0.1:1080, a SOCKS proxy") as caught:
        open_hub(source)
    assert install in str(caught.value.hint)
    assert "secret" not in caught.value.problem


def test_a_kind_of_proxy_that_no_library_knows_is_refused(monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "ftp://127.0.0.1:21")
    for source in ("huggingface", "modelscope"):
        with pytest.raises(DsctlError, match="HTTPS_PROXY is ftp://127.0.0.1:21"):
            open_hub(source)


def test_a_hub_that_cannot_be_reached_is_named_with_address_and_proxy(monkeypatch):
    fault = explain("huggingface", "owner/name", ConnectionError())
    assert fault is not None
    assert fault.problem == "Hugging Face cannot be reached at https://huggingface.co for owner/name"
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "https://mirror.example/")
    monkeypatch.setenv("https_proxy", "http://me:secret@proxy.example:3128")
    fault = explain("modelscope", "owner/name", ConnectionError())
    assert fault is not None
    way = "https://mirror.example, through the proxy http://proxy.example:3128 of https_proxy,"
    assert fault.problem == f"ModelScope cannot be reached at {way} for owner/name"


def test_a_host_in_no_proxy_is_reached_directly(monkeypatch):
    monkeypatch.setenv("ALL_PROXY", "http://proxy.example:3128")
    assert proxy_of("https://huggingface.co") == ("ALL_PROXY", "http://proxy.example:3128")
    monkeypatch.setenv("NO_PROXY", "huggingface.co")
    assert proxy_of("https://huggingface.co") is None
