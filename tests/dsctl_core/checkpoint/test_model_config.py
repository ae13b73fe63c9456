"""Paths of weights are used as they are, ids lie below the model base path, and a missing one is an error."""

import pytest

from dsctl_core import ModelConfig
from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.hub.settings import model_base_path


@pytest.fixture
def downloaded(tmp_path, monkeypatch):
    """A model of three shards and a tokenizer, downloaded."""
    folder = tmp_path / "base" / "Owner" / "Name"
    for name in ("dit/b-2.safetensors", "dit/b-1.safetensors", "dit/config.json", "tokenizer/tokenizer.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    monkeypatch.setenv("DSCTL_MODEL_BASE_PATH", str(tmp_path / "base"))
    return folder


def test_a_pattern_gives_its_files_in_order(downloaded):
    config = ModelConfig(model_id="Owner/Name", origin_file_pattern="dit/*.safetensors")
    assert [path.name for path in config.resolve()] == ["b-1.safetensors", "b-2.safetensors"]


@pytest.mark.parametrize(("pattern", "folder"), [("tokenizer/", "tokenizer"), (None, ""), ("", ""), ("./", "")])
def test_a_folder_pattern_gives_the_folder(downloaded, pattern, folder):
    config = ModelConfig(model_id="Owner/Name", origin_file_pattern=pattern)
    assert config.resolve() == [downloaded / folder]


def test_a_star_does_not_cross_folders(downloaded):
    with pytest.raises(DsctlError, match="matches"):
        ModelConfig(model_id="Owner/Name", origin_file_pattern="*.safetensors").resolve()


@pytest.mark.parametrize(
    ("model_id", "pattern", "message"),
    [
        ("Owner/Other", None, "Owner/Other is not in"),
        ("Owner/Name", "vae/", "has no folder 'vae/'"),
        ("Owner/Name", "dit/*.bin", "no file in .* matches"),
    ],
)
def test_what_is_not_downloaded_is_an_error_that_says_where_it_should_be(downloaded, model_id, pattern, message):
    with pytest.raises(DsctlError, match=message) as caught:
        ModelConfig(model_id=model_id, origin_file_pattern=pattern).resolve()
    assert str(downloaded.parent) in (caught.value.hint or "")


def test_paths_are_used_as_they_are_and_must_exist(tmp_path):
    (tmp_path / "b").write_text("")
    (tmp_path / "a").write_text("")
    assert ModelConfig(path=[tmp_path / "b", str(tmp_path / "a")]).resolve() == [tmp_path / "a", tmp_path / "b"]
    with pytest.raises(DsctlError, match="c does not exist"):
        ModelConfig(path=tmp_path / "c").resolve()


def test_an_explicit_folder_beats_the_environment_and_dsctl_beats_diffsynth(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFSYNTH_MODEL_BASE_PATH", str(tmp_path / "theirs"))
    assert model_base_path() == tmp_path / "theirs"
    monkeypatch.setenv("DSCTL_MODEL_BASE_PATH", str(tmp_path / "ours"))
    assert model_base_path() == tmp_path / "ours"
    (tmp_path / "mine" / "A" / "B").mkdir(parents=True)
    assert ModelConfig(model_id="A/B", local_model_path=tmp_path / "mine").resolve() == [tmp_path / "mine" / "A" / "B"]


def test_the_string_form_is_id_and_pattern_unless_such_a_path_exists(tmp_path, monkeypatch):
    config = ModelConfig.from_string("Owner/Name:dit/*.safetensors")
    assert (config.model_id, config.origin_file_pattern) == ("Owner/Name", "dit/*.safetensors")
    (tmp_path / "odd:name").write_text("")
    monkeypatch.chdir(tmp_path)
    assert ModelConfig.from_string("odd:name").path == "odd:name"
    with pytest.raises(UsageError, match="neither a path that exists nor ID:PATTERN"):
        ModelConfig.from_string("no-colon")


def test_exactly_one_of_path_and_id_is_given():
    for settings in ({}, {"path": "a", "model_id": "b"}):
        with pytest.raises(UsageError, match="either path or model_id"):
            ModelConfig(**settings)
