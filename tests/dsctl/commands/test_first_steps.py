"""`dsctl import` and `dsctl init`: what they write is what `dsctl train --config` takes."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from dsctl_core.commands import init as init_command
from dsctl_core.commands.init_model import choose_model
from dsctl_core.families import find_preset
from tests.dsctl.running import Dsctl

PARTS = ("transformer", "text_encoder", "vae")


def write_pictures(folder: Path, sizes: list[tuple[int, int]]) -> None:
    folder.mkdir()
    for number, size in enumerate(sizes):
        Image.effect_noise(size, 60 + number).convert("RGB").save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"noise {number}", encoding="utf-8")


def test_an_imported_command_passes_a_dry_run(dsctl: Dsctl, repository: Path, files: None):
    model = repository / "dsctl_core/assets/tiny"
    paths = json.dumps([f"{model}/{part}" for part in PARTS])
    Path("a.sh").write_text(
        f"accelerate launch train.py --model_paths '{paths}' --tokenizer_path {model}/tokenizer --mystery 7 \\\n"
        "  --dataset_base_path data --lora_base_model dit --lora_rank 2 --output_path out --dataset_repeat 3\n"
    )
    run = dsctl("import", "a.sh", "--json")
    assert (run.code, run.json["mapped"], run.json["output"]) == (0, 7, "run.toml")
    assert [(each["key"], each["value"]) for each in run.json["without_counterpart"]] == [("mystery", "7")]
    planned = dsctl("train", "--config", "run.toml", "--dry-run", "--device", "cpu", "--json")
    assert (planned.code, planned.json["steps"]) == (0, 3), planned.err
    assert dsctl("import", "a.sh").fault(1)[0] == "run.toml already exists"


def test_what_init_writes_trains_as_it_is(dsctl: Dsctl, repository: Path):
    folder = repository / "dsctl_core/assets/datasets/robot"
    run = dsctl("init", folder, "--model", "tiny", "--json")
    assert (run.code, run.json["steps"], run.json["resolution"]) == (0, 1500, 96)
    flags = ["--max-steps", "2", "--device", "cpu", "--sample-steps", "1", "--batch-size", "1"]
    trained = dsctl("train", "--config", "run.toml", *flags, "--json")
    assert (trained.code, trained.json["steps"]) == (0, 2), trained.err
    assert len(list(Path("runs/robot/samples").rglob("*.png"))) >= 4
    assert dsctl("init", folder, "--model", "tiny").fault(1)[0] == "run.toml already exists"


def test_init_follows_the_pictures_and_repeats_them_for_about_1500_steps(dsctl: Dsctl, monkeypatch):
    monkeypatch.setattr(init_command, "gpu_memory", lambda: 24 * 10**9)
    write_pictures(Path("set"), [(320, 200), (200, 320), (330, 210), (900, 800)])
    run = dsctl("init", "set", "--json")
    assert run.code == 0, run.err
    assert abs(run.json["steps"] - 1500) <= 4
    assert run.json["resolution"] == 256  # of the median picture, which is smaller than the model's own size
    assert find_preset(run.json["model"])[1].first_choice
    text = Path("run.toml").read_text(encoding="utf-8")
    assert 'sample_prompt = ["noise 0", "noise 1", "noise 2", "noise 3"]' in text
    assert "use_gradient_checkpointing = true" in text


def test_init_refuses_what_would_not_train_and_writes_nothing(dsctl: Dsctl):
    write_pictures(Path("set"), [(64, 64), (64, 64)])
    Path("set/1.png").write_bytes(Path("set/1.png").read_bytes()[:60])
    assert "dsctl dataset validate set" in dsctl("init", "set", "--model", "tiny").fault(1)[1]
    assert dsctl("init", "nowhere", "--model", "tiny").fault(1)[0] == "nowhere does not exist"
    Path("bare").mkdir()
    Image.new("RGB", (64, 64)).save("bare/a.png")
    assert "caption" in dsctl("init", "bare", "--model", "tiny").fault(1)[0]
    Path("bare/a.mp4").write_bytes(b"")
    assert dsctl("init", "bare", "--model", "tiny").fault(1)[0] == "bare has 1 picture and 1 clip"
    Path("bare/a.png").unlink()
    Path("bare/a.txt").write_text("a clip")
    assert "makes pictures, not clips" in dsctl("init", "bare", "--model", "tiny").fault(2)[0]
    assert "is 'x.txt', which is no TOML" in dsctl("init", "set", "--output", "x.txt").fault(2)[0]
    assert list(Path().glob("*.toml")) == []


def test_init_names_the_command_that_writes_the_captions_which_then_trains(dsctl: Dsctl, model: Path):
    write_pictures(Path("set"), [(64, 64), (64, 64), (64, 64)])
    for number in (0, 2):
        Path(f"set/{number}.txt").unlink()
    for name, how in ((model, f"--model {model}"), ("qwen-image", "--model qwen-image"), ("tiny", "--captioner ")):
        problem, hint = dsctl("init", "set", "--model", name).fault(1)
        assert problem == "2 of the 3 files in set have no caption"
        assert f"`dsctl dataset caption set {how}" in hint
    command = ("dataset", "caption", "set", "--model", model, "--max-tokens", 4, "--device", "cpu", "--json")
    assert {**dsctl(*command).json} == {"table": None, "written": 2, "earlier": 0, "kept": 1, "cut": 2, "failed": 0}
    Path("set/3.png").write_bytes(b"nothing")
    assert (dsctl(*command).code, dsctl(*command).json["failed"]) == (1, 1)
    Path("set/3.png").unlink()
    assert dsctl("init", "set", "--model", model).code == 0
    planned = dsctl("train", "--config", "run.toml", "--dry-run", "--device", "cpu", "--json")
    assert planned.code == 0, planned.err


def test_more_memory_never_means_a_smaller_model_and_without_a_gpu_pictures_have_an_embedded_one():
    for videos in (False, True):
        sizes = []
        for memory in range(4, 160, 4):
            choice = choose_model(memory * 2**30, videos=videos)
            assert choice is not None
            family, preset = find_preset(choice.model)
            assert (family.time_division is not None) == videos
            weights = (family.weight_bytes(preset) or {}).get("dit", 0)
            sizes.append(weights // 2 if choice.fp8 else weights)
            assert weights == 0 or sizes[-1] < memory * 2**30
        assert sizes == sorted(sizes)
        assert len(set(sizes)) > 1
    none = choose_model(0, videos=False)
    assert none is not None and find_preset(none.model)[1].model_id is None
