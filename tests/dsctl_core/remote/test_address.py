"""Addresses: what is one, and which are refused."""

from pathlib import Path

import pytest

from dsctl_core.errors import DsctlError, UsageError, masked
from dsctl_core.options import CacheOptions, DatasetValidateOptions
from dsctl_core.remote.address import address_of, given_address, is_remote, place_of, refuse_secrets


@pytest.mark.parametrize(
    "text", ["s3://bucket/a b/c.png", "modelscope://datasets/user/name@v1/x", "https://host:8080/x.tar"]
)
def test_an_address_survives_a_path(text: str) -> None:
    assert is_remote(text)
    assert is_remote(Path(text))
    assert address_of(Path(text)) == address_of(text) == text == place_of(Path(text))


@pytest.mark.parametrize("path", ["a/b", "/a/b:/c", "C:/data", "C:\\data", "s3:", "s3:bucket", "./s3", "data:x/y"])
def test_a_local_path_is_no_address(path: str) -> None:
    assert not is_remote(path)
    assert not is_remote(Path(path))


SECRET = "sesame"
SECRETS = (
    *(SECRET, f"wJalr/K7+{SECRET}", f"{SECRET}/K7", f"/{SECRET}", f"12/{SECRET}", f"{SECRET}@", f"a:{SECRET}="),
    *(f"%2F{SECRET}", f"\\{SECRET}", f"'{SECRET}", f"?{SECRET}"),
)
FORMS = (
    *("s3://KEY:{}@bucket/x", "s3:/KEY:{}@bucket/x", "S3://KEY:{}@bucket/x", "s3:KEY:{}@bucket/x"),
    *("https://me:{}@host:80/x", "gs://:{}@bucket/x", "s3://{}@bucket/x", "s3://KEY:{}", "s3://KEY:{}@bucket/a@2x.png"),
    *("simplecache::s3://KEY:{}@bucket/x", "zip://a.zip::s3://KEY:{}@b", "s3://bucket/x::s3://KEY:{}@b/x"),
    *(
        "https://host/x.csv?X-Amz-Signature={}",
        "https://host/x.csv#token={}",
        "https://host/x?{}",
        "s3://b/x?version={}",
    ),
    "s3:\\\\KEY:{}@bucket",
)
AROUND = (
    *("{}", " {}", "\t{}", "'{}'", "row 2: image {} is bad", "=({}),", "a/b/{}", "{} and s3://other/x, {}", "é{}"),
    *("-{}", "12{}", "x{}", '"{}":', "\u200b{}", "\n{}", f"{'a' * 40}{{}}"),
)


@pytest.mark.parametrize("form", FORMS)
def test_no_message_shows_a_secret_and_no_path_may_have_one(form: str) -> None:
    for secret in SECRETS:
        if form == "s3://{}@bucket/x" and set(secret) & set("/\\?") or set(form) & set("?#") and "'" in secret:
            continue  # nothing tells s3://SE/CRET@b from a file in the bucket SE, or a quote from the end of a text
        address = form.format(secret)
        for around in AROUND:
            text = around.format(address, address)
            assert SECRET not in masked(text), text
            error = DsctlError(text, hint=text)
            assert SECRET not in f"{error} {error!r} {error.problem} {error.hint}"
            with pytest.raises(UsageError) as raised:
                refuse_secrets(text)
            assert SECRET not in f"{raised.value} {raised.value.hint}", text


PLAIN = (
    *("s3://bucket/img@2x.png", "s3://bucket: no", "http://host:8080/x", "http://[::1]:80/x", "http://host:80: no"),
    *("C:\\a\\b", "'s3://bucket', 'gs://b'", "a:b", "write to me@host", "s3://bucket/a?b.png", "s3://bucket/a#1.png"),
    *("error: row 2: image: no", "data:image/png;base64,AA+/=", "/a/b:c@d", "(s3://bucket)", "12:30 s3://bucket/a:b@c"),
    "hf://datasets/me/set@main/x",
    "modelscope://datasets/me/set@v1/x: no",
)


@pytest.mark.parametrize("text", PLAIN)
def test_a_message_without_a_secret_is_shown_as_it_is(text: str) -> None:
    assert masked(text) == text


@pytest.mark.parametrize(
    ("chain", "hint"),
    [
        ("simplecache::s3://bucket/folder", "give what is behind it alone"),
        ("filecache::https://host/a.tar", "give what is behind it alone"),
        ("zip://a.zip::s3://bucket/a.zip", "others are to be unpacked"),
        ("zip://*.png::/data/a.zip", "others are to be unpacked"),
        ("tar://a/b.png::simplecache::gs://bucket/a.tar", "others are to be unpacked"),
    ],
)
def test_a_chain_is_refused_with_what_to_give_instead(chain: str, hint: str, tmp_path: Path) -> None:
    for given in (chain, Path(chain)):
        with pytest.raises(UsageError, match="is a chain, which is not read") as raised:
            DatasetValidateOptions(path=given)
        assert hint in (raised.value.hint or "")
        with pytest.raises(UsageError, match="is a chain, which is not read"):
            CacheOptions(model="tiny", dataset_base_path=tmp_path, output_path=given)
    refuse_secrets("captions::v2/a")  # a name of a folder


@pytest.mark.parametrize("address", ["https://host/x?a=b", "s3://b/x#y", "c::s3://b/x", "s3://b/../x", "s3://b/a::b"])
def test_a_detour_is_refused_of_users_and_read_of_a_listing(address: str) -> None:
    with pytest.raises(UsageError):
        given_address(address)
    if "c::" not in address:
        assert address_of(address) == address


def test_secrets_in_a_message_are_masked() -> None:
    text = "GET https://me:sesame@host/a?sig=sesame failed, s3://b/k?versionId=sesame"
    assert masked(text) == "GET https://***@host/a?*** failed, s3://b/k?***"
