"""A packed template does what the training's file does, holds nothing that should not leave, or is not there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dsctl_core.checkpoint.model_config import ModelConfig
from dsctl_core.errors import DsctlError
from dsctl_core.files.safetensors import read_safetensors
from dsctl_core.template.model import Template, load_template
from dsctl_core.template.pack import Packed, verify, write_pack
from dsctl_core.template.trust import Trust
from tests.templates import BRIGHTNESS, ENCODER

Write = Callable[..., Path]
SCALE = {"scale": 0.3}
TRUSTED = Trust(granted=True)


def opened(folder: Path, checkpoint: Path | None = None) -> Template:
    return load_template(ModelConfig(path=folder), TRUSTED, checkpoint=checkpoint)


@pytest.fixture
def trained(template: Write, tmp_path: Path) -> tuple[Path, Path]:
    """A template, and the file of a training that changed all of its weights."""
    folder = template()
    weights = {name: each + 1.5 for name, each in opened(folder).model.state_dict().items()}
    about = {"base_model": "/secret/place/tiny-random", "steps": "7", "template": "/secret/place", "dataset": "ab"}
    save_file(weights, tmp_path / "step-7.safetensors", metadata=about)
    return folder, tmp_path / "step-7.safetensors"


def packed(trained: tuple[Path, Path], pipe: Any, output: Path, **more: Any) -> Packed:
    folder, file = trained
    return write_pack(opened(folder, file), file, output, pipe, SCALE, **more)


def test_it_loads_without_the_checkpoint_and_returns_the_same(trained: Any, pipe: Any, tmp_path: Path) -> None:
    result = packed(trained, pipe, tmp_path / "new" / "bright", license_name="mit")
    assert result.files == ["README.md", "model.py", "model.safetensors"]
    assert load_file(tmp_path / "new/bright/model.safetensors").keys() == load_file(trained[1]).keys()
    again, wanted = opened(tmp_path / "new" / "bright"), opened(*trained)
    given = torch.tensor([0.3])
    first, second = (each.model(given)["kv_cache"]["double_0"] for each in (again, wanted))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    before = (trained[0] / "model.py").read_bytes()
    after = (tmp_path / "new" / "bright" / "model.py").read_bytes()
    assert after == before.replace(b"TEMPLATE_MODEL_PATH = None", b'TEMPLATE_MODEL_PATH = "model.safetensors"')


def test_the_trained_weights_win_and_the_others_stay(template: Write, pipe: Any, tmp_path: Path) -> None:
    folder = template(ENCODER + 'TEMPLATE_MODEL_PATH = "own.safetensors"\n')
    own = {"encoder.weight": torch.full((8, 4), 2.0), "encoder.bias": torch.zeros(8)}
    own |= {"mlp.weight": torch.full((128, 8), 3.0), "mlp.bias": torch.zeros(128)}
    save_file(own, folder / "own.safetensors")
    save_file({"mlp.weight": torch.full((128, 8), 5.0), "mlp.bias": torch.ones(128)}, tmp_path / "t.safetensors")
    both = opened(folder, tmp_path / "t.safetensors")
    result = write_pack(both, tmp_path / "t.safetensors", tmp_path / "p", pipe, {"colour": [0.1, 0.2, 0.3, 0.4]})
    found = load_file(tmp_path / "p" / "model.safetensors")
    assert {name: float(each.flatten()[0]) for name, each in found.items()} == {
        "encoder.weight": 2.0,
        "encoder.bias": 0.0,
        "mlp.weight": 5.0,
        "mlp.bias": 1.0,
    }
    assert "own.safetensors" not in result.files


def test_shards_hold_all_of_it_in_files_of_the_size_asked_for(trained: Any, pipe: Any, tmp_path: Path) -> None:
    packed(trained, pipe, tmp_path / "p", largest_file=2000)
    files = sorted((tmp_path / "p").glob("*.safetensors"))
    assert len(files) > 2
    assert files[0].name == f"model-00001-of-{len(files):05}.safetensors"
    found: dict[str, Any] = {}
    for file in files:
        own = load_file(file)
        assert len(own) == 1 or sum(each.nbytes for each in own.values()) <= 2000
        assert not own.keys() & found.keys()
        found |= own
    wanted = load_file(trained[1])
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert [file.name for file in opened(tmp_path / "p").contract.weights] == [file.name for file in files]


def test_what_the_code_needs_goes_along_and_what_is_hidden_stays(trained: Any, pipe: Any, tmp_path: Path) -> None:
    folder, _ = trained
    for name in ("table.json", "sub/words.txt", ".env", ".git/config", "__pycache__/model.pyc", "sub/old.pyc"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    (folder / "README.md").write_text("# Mine\n")
    result = packed(trained, pipe, tmp_path / "p")
    assert result.files == ["README.md", "model.py", "model.safetensors", "sub/words.txt", "table.json"]
    assert (tmp_path / "p" / "README.md").read_text() == "# Mine\n"


def test_the_card_and_the_header_say_what_it_is_and_not_where_it_was(trained: Any, pipe: Any, tmp_path: Path) -> None:
    packed(trained, pipe, tmp_path / "p", license_name="mit")
    card = (tmp_path / "p" / "README.md").read_text()
    about = read_safetensors(tmp_path / "p" / "model.safetensors")[1]
    assert 'license: "mit"' in card
    assert "for `tiny-random`, trained for 7 steps" in card
    assert "| `scale` | required |" in card
    assert "--template-inputs '{\"scale\": 0.3}'" in card
    assert json.loads(about["template_inputs"]) == SCALE
    assert about["base_model"] == "tiny-random"
    assert "/secret" not in card + str(about)


def tamper(folder: Path, kind: str) -> None:
    if kind == "a link out":
        (folder / "data.txt").symlink_to("/etc/hostname")
    elif kind == "a linked folder":
        (folder / "sub").symlink_to("/etc")
    elif kind == "a secret":
        (folder / "credentials.json").write_text("{}")
    elif kind == "a pickle":
        (folder / "old.pt").write_bytes(b"x")
    else:
        (folder / "model.py").write_text(BRIGHTNESS + "TEMPLATE_MODEL_PATH = None\n")


REFUSED = {
    "a link out": "data.txt is a link out of",
    "a linked folder": "sub is a link to a folder",
    "a secret": "credentials.json has the name of a file with secrets",
    "a pickle": "old.pt is a pickle",
    "two assignments": "sets TEMPLATE_MODEL_PATH 2 times",
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_must_not_be_packed_leaves_nothing_behind(trained: Any, pipe: Any, tmp_path: Path, kind: str) -> None:
    tamper(trained[0], kind)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(DsctlError, match=REFUSED[kind]):
        packed(trained, pipe, tmp_path / "new" / "p")
    assert sorted(tmp_path.iterdir()) == before


def test_an_output_that_is_there_stays_as_it_is(trained: Any, pipe: Any, tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    with pytest.raises(DsctlError, match="p already exists"):
        packed(trained, pipe, tmp_path / "p")
    with pytest.raises(DsctlError, match="is inside"):
        packed(trained, pipe, trained[0] / "p")
    assert list((tmp_path / "p").iterdir()) == []


def test_code_that_does_something_else_when_it_is_packed_is_refused(trained: Any, pipe: Any, tmp_path: Path) -> None:
    folder, file = trained
    code = BRIGHTNESS.replace("import torch\n", "import torch\nPACKED = '/p.' in __file__ or '/.p.' in __file__\n")
    code = code.replace("torch.Tensor([scale])", "torch.Tensor([scale + PACKED])")
    (folder / "model.py").write_text(code)
    with pytest.raises(DsctlError, match="outputs of the template .* differ from those with the checkpoint"):
        packed(trained, pipe, tmp_path / "p")
    assert not (tmp_path / "p").exists()


def test_other_weights_than_in_the_checkpoint_are_found(trained: Any, pipe: Any, tmp_path: Path) -> None:
    packed(trained, pipe, tmp_path / "p")
    weights = load_file(tmp_path / "p" / "model.safetensors")
    first = sorted(weights)[0]
    save_file({**weights, first: weights[first] + 1e-3}, tmp_path / "p" / "model.safetensors")
    with pytest.raises(DsctlError, match=f"{first} differs from the checkpoint"):
        verify(opened(*trained), tmp_path / "p", pipe, SCALE)
