"""Uploads through both real clients: checked before, compared afterwards, and nothing that should not leave."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dsctl_core.lora import LoraLayer, save_lora
from tests.dsctl_core.hub.conftest import shard
from tests.hub_server import Fault

SOURCES = ("huggingface", "modelscope")
REPO = "user/mine"


@pytest.fixture
def lora():
    layers = {"dit": {"blocks.0": LoraLayer(torch.ones(2, 40), torch.ones(40, 2))}}
    about = {"kind": "lora", "base_model": "tiny", "trigger_words": "a robot"}
    return save_lora(Path("step-3.safetensors"), layers, about)


@pytest.fixture
def folder():
    for name, data in {
        "model_index.json": b"{}",
        "README.md": b"# Mine\n",
        "transformer/diffusion_pytorch_model.safetensors": shard(1),
        ".hidden": b"x",
    }.items():
        Path("out", name).parent.mkdir(parents=True, exist_ok=True)
        Path("out", name).write_bytes(data)
    return Path("out")


def words(source, path, *more):
    return ("upload", path, "--repo", REPO, "--target", source, *more)


@pytest.mark.parametrize("source", SOURCES)
def test_a_lora_arrives_and_the_command_to_try_it_is_told(hub, dsctl, source, lora):
    run = dsctl(*words(source, lora), "--json")
    assert run.code == 0, run.err
    assert hub.repos[f"models/{REPO}"] == {"step-3.safetensors": lora.read_bytes()}
    assert run.json["url"].startswith(hub.url) and run.json["url"].endswith(REPO)
    assert run.json["try_it"] == [
        f"dsctl download {REPO} --source {source}",
        f"dsctl infer --model tiny --lora models/{REPO}/step-3.safetensors --prompt 'a robot'",
    ]


@pytest.mark.parametrize("source", SOURCES)
def test_a_folder_arrives_without_what_is_hidden_and_comes_back_the_same(hub, dsctl, source, folder):
    run = dsctl(*words(source, folder))
    assert run.code == 0, run.err
    there = hub.repos[f"models/{REPO}"]
    assert set(there) == {"model_index.json", "README.md", "transformer/diffusion_pytorch_model.safetensors"}
    assert all(content == (folder / name).read_bytes() for name, content in there.items())
    assert "dsctl infer --model ./models/user/mine" in run.out
    assert dsctl("download", REPO, "--source", source, "--local-dir", "back").code == 0
    assert all(content == Path("back", name).read_bytes() for name, content in there.items())


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("private", [False, True])
def test_a_repository_is_private_only_when_asked(hub, dsctl, source, lora, private):
    assert dsctl(*words(source, lora), *(["--private"] if private else [])).code == 0
    assert (f"models/{REPO}" in hub.private) is private


@pytest.mark.parametrize("source", SOURCES)
def test_uploading_again_to_a_repository_that_exists_is_fine(hub, dsctl, source, lora):
    assert dsctl(*words(source, lora)).code == 0
    assert dsctl(*words(source, lora)).code == 0


@pytest.mark.parametrize("source", SOURCES)
def test_a_dry_run_shows_what_would_go_and_asks_nothing(hub, dsctl, source, folder):
    run = dsctl(*words(source, folder), "--dry-run", "--json")
    assert run.json["uploaded"] is False
    assert set(run.json["files"]) == {
        "model_index.json",
        "README.md",
        "transformer/diffusion_pytorch_model.safetensors",
    }
    assert hub.requests == []


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(("status", "said"), [(401, "token"), (403, "does not allow"), (500, "out of order")])
def test_a_refusal_is_one_line_with_the_remedy(hub, dsctl, source, lora, status, said):
    hub.faults.append(Fault("POST ", status=status))
    error, hint = dsctl(*words(source, lora)).fault(1)
    assert said in error and hint


@pytest.mark.parametrize("source", SOURCES)
def test_an_upload_that_is_another_file_there_is_told(hub, dsctl, source, lora):
    class Lossy(dict):
        def __setitem__(self, key, value):
            super().__setitem__(key, value[:-1] + b"!")

    hub.repos[f"models/{REPO}"] = Lossy()
    error, _ = dsctl(*words(source, lora)).fault(1)
    assert "another checksum" in error


@pytest.mark.parametrize("source", SOURCES)
def test_a_dropped_upload_is_tried_again(hub, dsctl, source, lora):
    hub.faults.append(Fault("PUT ", status=503, times=1))
    assert dsctl(*words(source, lora)).code == 0
    assert hub.repos[f"models/{REPO}"]


def env(folder):
    (folder / ".env").write_text("A=1")
    return ".env has the name of a file with secrets"


def token(folder):
    (folder / "run.sh").write_text("x\nexport HF_TOKEN=hf_" + "a" * 34)
    return "run.sh, line 2, contains what looks like an access token"


def modelscope_token(folder):
    (folder / "notes.txt").write_text("ms-01234567-0123-0123-0123-0123456789ab")
    return "notes.txt, line 1"


def private_key(folder):
    (folder / "key.txt").write_text("-----BEGIN RSA PRIVATE KEY-----")
    return "key.txt, line 1"


def link_outside(folder):
    Path("outside.txt").write_text("mine")
    (folder / "link.txt").symlink_to(Path("outside.txt").absolute())
    return "is a link out of"


def cut_off(folder):
    (folder / "x.safetensors").write_bytes(shard(1)[:-5])
    return "is damaged"


@pytest.mark.parametrize("spoil", [env, token, modelscope_token, private_key, link_outside, cut_off])
def test_what_must_not_leave_stops_the_upload_before_it_begins(hub, dsctl, folder, spoil):
    said = spoil(folder)
    run = dsctl(*words("huggingface", folder))
    error, hint = run.fault(1)
    assert said in error and hint
    assert "a" * 34 not in run.err
    assert hub.requests == []


def test_a_file_over_the_hubs_limit_is_told_before_it_is_sent(hub, dsctl, lora, monkeypatch):
    from dsctl_core.hub.huggingface import HuggingFace

    monkeypatch.setattr(HuggingFace, "file_limit", 10)
    error, hint = dsctl(*words("huggingface", lora)).fault(1)
    assert "may have at most" in error and "shards" in hint
    assert not [request for request, _ in hub.requests if request.startswith(("PUT", "POST"))]


@pytest.mark.parametrize(
    ("path", "repo", "said"),
    [
        ("absent", REPO, "absent does not exist"),
        ("empty", REPO, "has no files to upload"),
        ("step-3.safetensors", "x", "'x'"),
    ],
)
def test_what_cannot_be_uploaded_is_named(hub, dsctl, lora, path, repo, said):
    Path("empty").mkdir()
    error, _ = dsctl("upload", path, "--repo", repo).fault(1)
    assert said in error
    assert hub.requests == []
