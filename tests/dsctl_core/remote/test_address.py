"""Addresses: what is one, and which are refused."""

from pathlib import Path

import pytest

from dsctl_core.errors import UsageError
from dsctl_core.remote.address import address_of, is_remote, masked, place_of


@pytest.mark.parametrize("text", ["s3://bucket/a b/c.png", "hf://datasets/user/name", "https://host:8080/x.tar"])
def test_an_address_survives_a_path(text: str) -> None:
    assert is_remote(text)
    assert is_remote(Path(text))
    assert address_of(Path(text)) == address_of(text) == text == place_of(Path(text))


@pytest.mark.parametrize("path", ["a/b", "/a/b:/c", "C:/data", "C:\\data", "s3:", "s3:bucket", "./s3", "data:x/y"])
def test_a_local_path_is_no_address(path: str) -> None:
    assert not is_remote(path)
    assert not is_remote(Path(path))


@pytest.mark.parametrize(
    "address",
    [
        "s3://KEY:sesame@bucket/x",
        "https://host/x.csv?X-Amz-Signature=sesame",
        "https://host/x.csv#token=sesame",
        "simplecache::s3://bucket/sesame",
        "s3://bucket/../sesame",
    ],
)
def test_an_address_with_a_secret_or_a_detour_is_refused_without_showing_the_secret(address: str) -> None:
    with pytest.raises(UsageError) as raised:
        address_of(address)
    assert "sesame" not in f"{raised.value} {raised.value.hint}" or "@" not in address and "=" not in address


def test_secrets_in_a_message_are_masked() -> None:
    text = "GET https://me:sesame@host/a?sig=sesame failed, s3://b/k?versionId=sesame"
    assert masked(text) == "GET https://***@host/a?*** failed, s3://b/k?***"
