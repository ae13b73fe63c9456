"""Recorded numbers: what is read from files, what counts as a difference, and which commands there are."""

from __future__ import annotations

import copy
import json
import struct
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks import exact
from benchmarks.exact_cases import Case, Commands, cases, flags
from benchmarks.exact_materials import Materials
from benchmarks.exact_read import digest_safetensors, read_cache, read_metrics, read_output

LINE = {"step": 1, "loss": 0.1, "lr": 1e-4, "grad_norm": 0.3, "seconds": 1.5, "peak_memory_bytes": 7}
RECORDED: dict[str, Any] = {
    "about": {"torch": "2"},
    "cases": {
        "tiny/lora": {"exit": 0, "files": {"metrics.jsonl": [{"step": 1, "loss": (0.1).hex()}], "a.png": {}}},
        "tiny/infer": {"exit": 0, "files": {"infer.png": {"size": [64, 64], "pixels": "ab" * 32}}},
    },
}


def write_tensors(path: Path, content: bytes, names: tuple[str, str] = ("a", "b"), **metadata: str) -> Path:
    """Write two tensors of two bytes each, in the order of `names`."""
    header: dict[str, Any] = {"__metadata__": metadata}
    for number, name in enumerate(names):
        header[name] = {"dtype": "U8", "shape": [2], "data_offsets": [2 * number, 2 * number + 2]}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content)
    return path


def test_equal_recordings_have_no_differences():
    assert exact.compare(RECORDED, copy.deepcopy(RECORDED)) == {}
    assert exact.report({}, 2) == "2 cases, all equal"


def test_a_loss_that_is_another_in_its_last_bit_is_found():
    new = copy.deepcopy(RECORDED)
    new["cases"]["tiny/lora"]["files"]["metrics.jsonl"][0]["loss"] = (0.1 + 2**-56).hex()
    found = exact.compare(RECORDED, new)
    assert found == {"tiny/lora": ["files > metrics.jsonl[0] > loss: was 0.1, is 0.10000000000000002"]}
    assert exact.report(found, 2).endswith("1 of 2 cases differ")


def test_a_case_that_is_missing_and_one_that_is_new_are_found():
    new = copy.deepcopy(RECORDED)
    new["cases"]["tiny/other"] = new["cases"].pop("tiny/infer")
    assert set(exact.compare(RECORDED, new)) == {"tiny/infer", "tiny/other"}


def test_a_step_a_file_and_a_failure_are_found():
    new = copy.deepcopy(RECORDED)
    new["cases"]["tiny/lora"]["files"]["metrics.jsonl"].append({"step": 2})
    new["cases"]["tiny/infer"] = {"exit": 1, "error": "no"}
    found = exact.compare(RECORDED, new)
    assert found["tiny/lora"] == ["files > metrics.jsonl[1] > step: is 2, was not there before"]
    assert "exit: was 0, is 1" in found["tiny/infer"]
    del new["cases"]["tiny/lora"]["files"]["a.png"]
    assert "files > a.png: was {}, is not there now" in exact.compare(RECORDED, new)["tiny/lora"]


def test_long_lists_of_differences_are_cut_short():
    found = {"tiny/lora": [str(number) for number in range(9)]}
    assert "and 4 more" in exact.report(found, 1)
    assert "more" not in exact.report(found, 1, every_line=True)


def test_a_digest_is_of_the_tensors_and_sees_every_bit(tmp_path: Path):
    one = digest_safetensors(write_tensors(tmp_path / "1", b"\0\1\2\3", version="1", place="/a"))
    other = digest_safetensors(write_tensors(tmp_path / "2", b"\2\3\0\1", names=("b", "a"), version="two", place="b"))
    assert one == other
    assert one["metadata"] == ["place", "version"]
    assert digest_safetensors(write_tensors(tmp_path / "3", b"\0\1\2\2"))["tensors"] != one["tensors"]
    assert digest_safetensors(write_tensors(tmp_path / "4", b"\0\1\2\3", names=("a", "c")))["tensors"] != one["tensors"]


def test_of_random_states_only_that_of_torch_counts(tmp_path: Path):
    names, places = ("0.0.python.words", "2.0.torch"), [tmp_path / name for name in "123"]
    for place in places:
        place.mkdir()
    one, drawn, other = (
        digest_safetensors(write_tensors(place / "random.safetensors", content, names))
        for place, content in zip(places, (b"abcd", b"xycd", b"abce"), strict=True)
    )
    assert one == drawn != other
    assert one["count"] == 1


def test_metrics_are_exact_and_without_what_a_clock_says(tmp_path: Path):
    (tmp_path / "metrics.jsonl").write_text(json.dumps(LINE) + "\n")
    (line,) = read_metrics(tmp_path / "metrics.jsonl")
    assert line == {"step": 1, "loss": (0.1).hex(), "lr": (1e-4).hex(), "grad_norm": (0.3).hex()}


def test_a_cache_is_read_entry_by_entry(tmp_path: Path):
    def cache(name: str, key: str, content: bytes) -> dict[str, Any]:
        folder = tmp_path / name
        (folder / "shards").mkdir(parents=True)
        structures = json.dumps({key: {"posi.x": {"tensor": 0}, "shared.strength": 0.5}})
        write_tensors(folder / "shards" / "s.safetensors", content, (f"{key}/0", f"{key}/1"), dsctl_cache=structures)
        entry = {"row": 0, "key": "k", "values": {"scale": 0.1}, "parts": [key]}
        (folder / "index.json").write_text(json.dumps({"entries": [entry], "parts": {key: "s"}}))
        (folder / "manifest.json").write_text("{}")
        assert read_output(tmp_path / name) == {"cache": read_cache(folder)}
        return read_cache(folder)

    one, renamed, changed = cache("1", "p", b"abcd"), cache("2", "q", b"abcd"), cache("3", "p", b"abce")
    assert one["entries"][0]["values"] == {"scale": (0.1).hex()}
    assert one["parts"] == renamed["parts"] != changed["parts"]
    assert one["entries"] == changed["entries"] != renamed["entries"]


def test_pictures_are_their_pixels_and_all_of_one_command_are_read(tmp_path: Path):
    for number in (1, 2):
        Image.new("RGB", (3, 2), (number, 0, 0)).save(tmp_path / f"a-00{number}.png", dpi=(number, number))
    Image.new("RGB", (3, 2)).save(tmp_path / "a-lora.png")  # of another command
    found = read_output(tmp_path / "a.png")
    assert list(found) == ["a-001.png", "a-002.png"]
    assert found["a-001.png"]["size"] == [3, 2]
    assert found["a-001.png"] != found["a-002.png"]
    with pytest.raises(FileNotFoundError, match=r"nothing at b\.png"):
        read_output(tmp_path / "b.png")


def test_a_command_that_fails_is_recorded_without_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    said = json.dumps({"error": f"{tmp_path}/x is no model", "hint": None})
    monkeypatch.setattr(exact, "run_command", lambda words: (2, said + "\n"))
    assert exact.run_case(Case("a", (), "a"), tmp_path) == {"exit": 2, "error": "x is no model"}
    monkeypatch.setattr(exact, "run_command", lambda words: (0, "{}"))
    assert "FileNotFoundError" in exact.run_case(Case("a", (), "a"), tmp_path)["unreadable"]


def test_the_command_line_itself_is_what_runs():
    code, printed = exact.run_command(["models", "show", "nothing"])
    assert code != 0
    assert "nothing" in json.loads(printed)["error"]


@pytest.mark.parametrize(("change", "code"), [(None, 0), ("other", 1)])
def test_compare_says_by_its_exit_code_whether_anything_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], change: str | None, code: int
):
    monkeypatch.setattr(exact, "record", lambda models: copy.deepcopy(RECORDED))
    file = tmp_path / "new" / "numbers.json"
    assert exact.main(["record", str(file)]) == 0
    if change:
        file.write_text(file.read_text().replace("ab" * 32, "cd" * 32).replace('"2"', '"1"'))
    assert exact.main(["compare", str(file)]) == code
    captured = capsys.readouterr()
    assert ("torch: was '1', is '2'" in captured.err) == bool(change)
    assert ("tiny/infer" in captured.out) == bool(change)


def test_every_case_has_a_name_and_a_result_of_its_own():
    templates = {kind: kind for kind in ("kv_cache", "words", "lora", "encoder")}
    assert exact.MODELS
    for name in exact.MODELS:
        materials = Materials(name, f"for-{name}", "m", "rows", "shapes", "distilled", "given", "edited", templates)
        made = list(cases(materials))
        assert len({case.name for case in made}) == len(made) > 4
        outputs = [case.output for case in made if case.name != "resumed"]
        assert len(set(outputs)) == len(outputs)
        assert all(case.output in case.words for case in made)
        assert Commands(materials).weights("lora") == f"for-{name}/out/lora/step-20.safetensors"


def test_values_become_flags():
    made = flags({"use_dora": True, "cache": False, "lora": ["a", "b"], "height": None, "given": {"x": 1}})
    assert made == ("--use-dora", "--no-cache", "--lora", "a", "--lora", "b", "--given", '{"x": 1}')
