"""The benchmark of a GPU runs on the embedded model, goes on where it was, and says what it needs."""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path

import pytest

from benchmarks import gpu, gpu_case
from benchmarks.gpu import FULL_SIZE, TINY, as_markdown, main
from dsctl_core.families.resolve import resolve_model
from dsctl_core.options import TrainOptions


def test_a_case_is_measured_in_a_process_of_its_own(python, monkeypatch):
    monkeypatch.setattr(sys, "executable", python)
    case = {"device": "cpu", "steps": 1, **TINY["tiny encode"]}
    assert gpu.in_its_own_process(case, "measure", 300)["seconds"] > 0
    assert "failed" in gpu.in_its_own_process({**case, "model": "tinny"}, "measure", 300)


def test_each_case_is_measured_on_the_embedded_model_and_none_twice(tmp_path, capsys, monkeypatch):
    one_at_a_time, ran = threading.Lock(), []

    def here(case: dict, mode: str, timeout: float) -> dict:
        with one_at_a_time:
            folder = tmp_path / str(len(ran))
            folder.mkdir()
            ran.append(mode)
            return gpu_case.run(mode, case, Path(folder))

    monkeypatch.setattr(gpu, "in_its_own_process", here)
    file = tmp_path / "new" / "results.json"
    words = ["--tiny", "--device", "cpu", "--steps", "1", "--json", str(file), "--only"]
    main([*words, "numbers,tiny int8"])
    results = json.loads(file.read_text(encoding="utf-8"))
    assert list(results) == ["numbers", "tiny int8"]
    assert results["tiny int8"]["predicted"] > 2**29 and results["tiny int8"]["tflops"] > 0
    numbers = results["numbers"]["numbers"]
    assert set(numbers) == {"bf16", "recomputed", "int8"}
    assert all(each["gradient_cosine"] > 0.95 and each["loss_off"] < 0.02 for each in numbers.values()), numbers
    assert numbers["bf16"] == numbers["recomputed"]
    main([*words, "numbers,tiny infer"])
    again = json.loads(file.read_text(encoding="utf-8"))
    assert again["numbers"] == results["numbers"] and again["tiny infer"]["whole"] > 0
    assert sorted(ran) == ["measure", "measure", "measure", "predict"]
    assert "| tiny infer | " in capsys.readouterr().out


def test_the_cases_of_full_size_are_options_of_published_models():
    for case in FULL_SIZE.values():
        if "model" in case:
            preset = resolve_model(case["model"]).preset
            assert preset is not None and preset.model_id is not None
            levers = case.get("train", {"lora_rank": 1})
            TrainOptions(model=case["model"], dataset_base_path="d", output_path="o", **levers)
    assert {kind for case in TINY.values() for kind in case} == {kind for case in FULL_SIZE.values() for kind in case}


def test_what_failed_and_what_cannot_be_measured_is_said():
    assert "| a | out of memory |" in as_markdown({"a": {"failed": "out of memory"}})
    with pytest.raises(SystemExit, match="this needs a GPU"):
        main([])
    with pytest.raises(SystemExit, match="unknown case 'fast'"):
        main(["--only", "fast"])
