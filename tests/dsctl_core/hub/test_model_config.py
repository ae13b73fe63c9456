"""A ModelConfig gets what is missing, keeps what is right, and does without the hub when it can."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest
from PIL import Image

from dsctl_core.checkpoint.model_config import ModelConfig
from dsctl_core.commands.caption import caption
from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.hub import huggingface
from dsctl_core.options import DatasetCaptionOptions
from tests.dsctl_core.hub.conftest import REPO, contents, shard
from tests.hub_server import Fault, local_hub
from tests.tiny_captioners import write_tiny_captioner

SOURCES = ("huggingface", "modelscope")
WEIGHTS = "transformer/diffusion_pytorch_model*.safetensors"
SHARDS = [f"transformer/diffusion_pytorch_model-0000{n}-of-00002.safetensors" for n in (1, 2)]


def config(pattern=WEIGHTS, **settings):
    return ModelConfig(model_id=REPO, origin_file_pattern=pattern, **settings)


@pytest.fixture(params=SOURCES)
def source(request, hub, monkeypatch):
    monkeypatch.setenv("DSCTL_DOWNLOAD_SOURCE", request.param)
    return request.param


def test_shards_come_in_order_with_their_config_and_index(hub, source):
    assert config().resolve() == [Path("models", REPO, name) for name in SHARDS]
    there = {path.name for path in Path("models", REPO, "transformer").iterdir()}
    assert {"config.json", "diffusion_pytorch_model.safetensors.index.json"} <= there
    assert not Path("models", REPO, "vae").exists()


def test_a_captioner_comes_with_its_tokenizer_and_chat_and_without_pickles_or_code(hub, source, tmp_path):
    made = write_tiny_captioner("llava", tmp_path / "made")
    files = {path.name: path.read_bytes() for path in made.iterdir()}
    odd = {"pytorch_model.bin": b"a pickle", "code.py": b"raise SystemExit", "README.md": b"# One", "a.gguf": b"x"}
    hub.add("own/vlm", {**files, "merges.txt": b"", **odd})
    Image.effect_noise((32, 32), 50).convert("RGB").save(tmp_path / "a.png")
    shutil.rmtree(made)
    options = DatasetCaptionOptions(path=tmp_path / "a", captioner="own/vlm", device="cpu", max_tokens=3)
    (tmp_path / "a").mkdir()
    (tmp_path / "a.png").rename(tmp_path / "a/a.png")
    assert caption(options).written == 1
    there = {path.name for path in Path("models/own/vlm").iterdir() if not path.name.startswith(".")}
    assert "chat_template.jinja" in files
    assert there == {*files, "merges.txt"}


@pytest.mark.parametrize("pattern", ["tokenizer/", None, "", "./"])
def test_folder_patterns_give_the_folder(hub, source, pattern):
    assert config(pattern).resolve() == [Path("models", REPO, pattern or "")]
    assert Path("models", REPO, "tokenizer", "tokenizer.json").is_file()


def test_a_star_does_not_cross_folders_also_on_the_hub(hub, source):
    with pytest.raises(DsctlError, match="no file of owner/name matches"):
        config("*.safetensors").resolve()
    assert not Path("models").exists()


def test_a_stale_download_is_replaced_and_a_file_of_others_is_not(hub, source):
    path = Path("models", REPO, SHARDS[0])
    path.parent.mkdir(parents=True)
    path.write_bytes(b"of others")
    with pytest.raises(DsctlError, match="is there already, differs from the file in the repository"):
        config().resolve()
    assert path.read_bytes() == b"of others"
    path.unlink()
    config().resolve()
    assert path.read_bytes() == contents()[SHARDS[0]]
    hub.add(REPO, {**contents(), SHARDS[0]: shard(7)})
    config().resolve()
    assert path.read_bytes() == shard(7)


def test_a_hub_that_does_not_answer_does_not_matter_when_the_files_are_there(hub, source, caplog):
    config().resolve()
    hub.faults.append(Fault("GET ", status=503))
    with caplog.at_level(logging.WARNING, "dsctl_core"):
        assert len(config().resolve()) == 2
    assert "using what is in" in caplog.text
    with pytest.raises(DsctlError, match="out of order"):
        config("vae/*.safetensors").resolve()


def test_a_refusal_matters_also_when_the_files_are_there(hub, source):
    config().resolve()
    hub.faults.append(Fault("GET /api", status=403))
    with pytest.raises(DsctlError, match="does not allow"):
        config().resolve()


@pytest.mark.parametrize("variable", ["DSCTL_SKIP_DOWNLOAD", "DIFFSYNTH_SKIP_DOWNLOAD"])
@pytest.mark.parametrize("value", ["1", "true", "True", "yes"])
def test_skipping_asks_nothing_however_it_is_said(hub, source, monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    with pytest.raises(DsctlError, match="owner/name is not in"):
        config().resolve()
    assert hub.requests == []


def test_skip_download_as_an_argument_beats_the_environment(hub, source, monkeypatch):
    with pytest.raises(DsctlError, match="is not in"):
        config(skip_download=True).resolve()
    monkeypatch.setenv("DSCTL_SKIP_DOWNLOAD", "1")
    assert config(skip_download=False).resolve()


def test_a_value_that_is_neither_yes_nor_no_is_refused(hub, monkeypatch):
    monkeypatch.setenv("DSCTL_SKIP_DOWNLOAD", "perhaps")
    with pytest.raises(UsageError, match="neither true nor false"):
        config().resolve()


def test_a_hub_that_is_unknown_is_refused_with_the_near_miss(hub):
    with pytest.raises(UsageError, match="huggingfase") as caught:
        config(download_source="huggingfase").resolve()
    assert "huggingface" in (caught.value.hint or "")


def test_an_explicit_folder_beats_the_environment(hub, source, monkeypatch):
    monkeypatch.setenv("DIFFSYNTH_MODEL_BASE_PATH", "theirs")
    assert config(local_model_path="mine").resolve()[0] == Path("mine", REPO, SHARDS[0])
    assert config().resolve()[0] == Path("theirs", REPO, SHARDS[0])


def test_a_file_or_folder_of_ones_own_never_touches_the_network(hub, tmp_path):
    (tmp_path / "a").write_text("")
    assert ModelConfig(tmp_path / "a").resolve() == [tmp_path / "a"]
    assert hub.requests == []


def test_the_hub_is_asked_once_for_each_config(hub, source):
    one = config()
    one.resolve()
    count = len(hub.requests)
    one.resolve()
    assert len(hub.requests) == count


def test_a_hub_that_accepts_and_says_nothing_is_given_up_on(hub, monkeypatch):
    import socket

    silent = socket.create_server(("127.0.0.1", 0))
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
    monkeypatch.setattr(huggingface, "TIMEOUT", 0.2)
    from huggingface_hub.utils._http import close_session

    close_session()
    with pytest.raises(DsctlError, match="cannot be reached"):
        config(download_source="huggingface").resolve()
    silent.close()
    close_session()


def test_two_hubs_at_once_do_not_mix(hub, monkeypatch):
    with local_hub() as other:
        other.add(REPO, {"a.json": b"{}"})
        monkeypatch.setenv("HF_ENDPOINT", other.url)
        config("a.json", download_source="huggingface", local_model_path="one").resolve()
        config("README.md", download_source="modelscope", local_model_path="two").resolve()
    assert Path("one", REPO, "a.json").is_file()
    assert Path("two", REPO, "README.md").is_file()
