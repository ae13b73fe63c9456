"""What a command writes replaces nothing that is not its own: every output, against everything that may be there."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from dsctl_core.files.png import write_png
from dsctl_core.lora.layers import LoraLayer
from dsctl_core.lora.save import save_lora
from dsctl_core.options.base import Options
from dsctl_core.version import __version__
from tests.cases import try_each
from tests.dsctl.commands.spoiled import good
from tests.dsctl.refusing import written
from tests.dsctl.running import Dsctl
from tests.templates import write_template

# Every option that names an output, by the class that declares it and its name; what follows from a case is below.
OUTPUTS = {
    ("InferOptions", "output"),
    ("ReportOptions", "output"),
    ("ReportOptions", "csv"),
    ("DatasetValidateOptions", "report"),
    ("DatasetCaptionOptions", "output"),  # tests/dsctl_core/commands/test_caption.py
    ("OutputOptions", "output_path"),
    ("CacheOptions", "output_path"),
    ("MergeLoraOptions", "output"),
    ("LoraConvertOptions", "output"),
    ("LoraResizeOptions", "output"),
    ("LoraExtractOptions", "output"),
    ("TemplateInitOptions", "name"),
    ("TemplatePackOptions", "output"),
    ("ImportOptions", "output"),
    ("InitOptions", "output"),
    ("DownloadOptions", "local_dir"),  # tests/dsctl_core/hub/test_targets.py
}
NAMES = ("output", "output_path", "csv", "report", "local_dir", "name")
INFER = ["infer", "--model=tiny", "--prompt=a", "--height=32", "--width=32", "--num-inference-steps=1", "--output"]
TRAIN = ["train", "--model=tiny", "--dataset-base-path=data", "--lora-rank=2", "--max-steps=1", "--device=cpu"]
LONGER = [word for word in TRAIN if not word.startswith("--max-steps")]
# name of a case -> the command up to its output, the suffix that the output has, the kinds of ours that it replaces
COMMANDS: dict[str, tuple[list[str], str, set[str]]] = {
    "infer": (INFER, ".png", {"picture"}),
    "infer of several": ([*INFER[:-1], "--num-images=2", "--output"], ".png", {"picture"}),
    "infer with a grid": ([*INFER[:-1], "--num-images=2", "--grid", "--output"], ".png", {"picture"}),
    "report": (["report", "run", "--output"], ".html", {"run page"}),
    "report table": (["report", "run", "--csv"], ".csv", {"table"}),
    "validate": (["dataset", "validate", "data", "--report"], ".html", {"dataset page"}),
    "validate a cache": (["dataset", "validate", "kept", "--report"], ".html", {"cache page"}),
    "train": ([*TRAIN, "--output-path"], "", set()),
    "cache": (
        ["cache", "--model=tiny", "--dataset-base-path=data", "--device=cpu", "--output-path"],
        "",
        {"cache folder"},
    ),
    "merge into the model": (["merge-lora", "--model=tiny", "--lora=l.safetensors", "--output"], "", set()),
    "merge into one": (
        ["merge-lora", "--lora=l.safetensors", "--into=lora", "--output"],
        ".safetensors",
        set(),
    ),
    "convert": (["lora", "convert", "l.safetensors", "--to=kohya", "--output"], ".safetensors", set()),
    "convert to a folder": (["lora", "convert", "l.safetensors", "--to=peft", "--output"], "", set()),
    "resize": (["lora", "resize", "l.safetensors", "--rank=1", "--output"], ".safetensors", set()),
    "extract": (["lora", "extract", "--base=m", "--tuned=m", "--rank=1", "--output"], ".safetensors", set()),
    "template init": (["template", "init"], "", set()),
    "init": (["init", "data", "--model=tiny", "--output"], ".toml", set()),
    "import": (["import", "train.sh", "--output"], ".toml", set()),
    "pack": (["template", "pack", "bright", "--checkpoint=l.safetensors", "--trust-template", "--output"], "", set()),
}
# A run may stand beside other files, such as a log, and leaves them as they are.
BESIDE = {("train", "folder"), ("train", "template"), ("train", "dataset")}


@pytest.fixture
def here(dsctl: Dsctl) -> dict[str, Path]:
    """What commands need in the working folder, and by name a file or folder of each kind that dsctl writes."""
    good(Path("data"))
    write_template(Path("bright"))
    Path("train.sh").write_text("python train.py --dataset_base_path data --lora_base_model dit\n", encoding="utf-8")
    layer = LoraLayer(torch.ones(2, 8), torch.ones(8, 2), 1.0)
    save_lora(Path("l.safetensors"), {"dit": {"transformer_blocks.0.attn.to_q": layer}}, {"family": "qwen-image"})
    Path("run").mkdir()
    about = {"command": "train", "versions": {"dsctl": __version__}, "options": {"task": "sft"}}
    Path("run/run.json").write_text(json.dumps(about))
    Path("run/metrics.jsonl").write_text('{"step": 1, "loss": 0.5, "lr": 0.1}\n')
    Path("run/step-1.safetensors").write_bytes(Path("l.safetensors").read_bytes())
    words = [*COMMANDS["cache"][0], "kept"]
    for made in (words, ["report", "run", "--output", "run.html", "--csv", "run.csv"]):
        assert dsctl(*made, "--quiet").code == 0
    for name in ("data", "kept"):
        assert dsctl("dataset", "validate", name, "--report", f"{name}.html", "--quiet").code == 0
    write_png(Path("drawn.png"), Image.new("RGB", (8, 8)), {"prompt": "a", "dsctl_version": __version__})
    write_png(Path("sample.png"), Image.new("RGB", (8, 8)), {"step": 3, "dsctl_version": __version__})
    kinds = {"run page": "run.html", "dataset page": "data.html", "cache page": "kept.html", "table": "run.csv"}
    kinds |= {"picture": "drawn.png", "sample": "sample.png", "lora": "l.safetensors", "weights": "run/run.json"}
    kinds |= {"run folder": "run", "cache folder": "kept", "template": "bright", "dataset": "data"}
    return {name: Path(path) for name, path in kinds.items()}


def of_output(command: str, target: Path) -> Path:
    """Return the file of the command's outputs that something else stands in the place of."""
    return target.with_name("out-002.png") if command == "infer of several" else target


def put(source: Path, target: Path) -> None:
    shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)


def foreign(target: Path) -> None:
    """Put what other programs write at `target`: of the right format, as far as there is one."""
    if target.suffix == ".png":
        Image.new("RGB", (8, 8), "red").save(target)
    elif target.suffix in (".html", ".csv", ".safetensors"):
        text = {".html": "<!doctype html><title>dsctl report</title>", ".csv": "step,loss\n1,2\n"}
        target.write_text(text.get(target.suffix, "not yours"))
    else:
        target.mkdir()
        (target / "manifest.json").write_text('{"name": "a web app"}')
        (target / "run.json").write_text("{}")


def link_to_file(target: Path) -> None:
    Path("mine.txt").write_text("mine")
    target.symlink_to(Path("mine.txt").absolute())


def link_to_own(target: Path, own: Path | None) -> None:
    if own is not None:
        shutil.copy(own, "own-elsewhere")
        target.symlink_to(Path("own-elsewhere").absolute())
    else:
        link_to_file(target)


def broken_link(target: Path) -> None:
    target.symlink_to("/nowhere/at/all")


def folder(target: Path) -> None:
    target.mkdir()
    (target / "mine.txt").write_text("mine")


def text_file(target: Path) -> None:
    target.write_text("mine")


def test_every_output_of_every_command_is_in_the_table():
    import dsctl.commands
    from dsctl_core.options import TrainOptions

    assert dsctl.commands and TrainOptions
    for module in Path(dsctl.commands.__path__[0]).glob("*.py"):
        __import__(f"dsctl.commands.{module.stem}")
    waiting, found = [Options], set()
    while waiting:
        kind = waiting.pop()
        waiting += kind.__subclasses__()
        own = {
            name for name in NAMES if name in kind.model_fields and "Path" in str(kind.model_fields[name].annotation)
        }
        found |= {(kind.__name__, name) for name in own if kind.__module__.startswith("dsctl_core.")}
    inherited = {(kind, name) for kind, name in found if kind.startswith("_")}  # and shown by the subclasses
    assert found - inherited == OUTPUTS


def test_nothing_is_replaced_that_the_same_command_has_not_written(dsctl: Dsctl, here: dict[str, Path]):
    makers: dict[str, Callable[[Path], None]] = {
        "foreign": foreign,
        "link": link_to_file,
        "broken link": broken_link,
        "folder": folder,
        "text": text_file,
    }
    shutil.copytree("run", "m")

    def check(command: str, there: str) -> None:
        words, suffix, replaced = COMMANDS[command]
        target = Path(f"out{suffix}")
        place = of_output(command, target)
        try:
            if there == "link to own":
                own = next((here[name] for name in sorted(replaced) if here[name].is_file()), None)
                link_to_own(place, own)
            elif there in makers:
                makers[there](place)
            else:
                put(here[there], place)
            before = written()
            if (command, there) in BESIDE:
                assert dsctl(*words, str(target)).code == 0
                assert {path: content for path, content in written().items() if path in before} == before
                return
            error, hint = dsctl(*words, str(target)).fault(1)
            assert written() == before
            assert place.name in error and hint
        finally:
            for made in (place, Path("mine.txt"), Path("own-elsewhere")):
                if made.is_dir() and not made.is_symlink():
                    shutil.rmtree(made)
                else:
                    made.unlink(missing_ok=True)

    def cases():
        for command, (_, _, replaced) in COMMANDS.items():
            for there in (*makers, "link to own", *(name for name in here if name not in replaced)):
                yield command, there

    try_each(cases(), check, at_least=200)


def test_each_command_replaces_what_it_has_written_itself(dsctl: Dsctl, here: dict[str, Path]):
    def check(command: str, there: str) -> None:
        words, suffix, _ = COMMANDS[command]
        target = Path(f"again{suffix}")
        put(here[there], target)
        run = dsctl(*words, str(target), "--quiet")
        assert run.code == 0, run.err
        assert dsctl(*words, str(target), "--quiet").code == 0

    cases = [(command, there) for command, (_, _, replaced) in COMMANDS.items() for there in sorted(replaced)]
    try_each([case for case in cases if "several" not in case[0]], check, at_least=6)


def test_a_report_never_replaces_the_weights_or_the_record_of_a_run(dsctl: Dsctl, here: dict[str, Path]):
    before = written()
    for name in ("step-1.safetensors", "run.json"):
        assert dsctl("report", "run", "--output", f"run/{name}").code == 2
    assert written() == before


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_all_files_of_a_run_and_a_cache_have_the_mode_that_the_umask_gives(dsctl: Dsctl, mask: int):
    good(Path("data"))
    before = os.umask(mask)
    try:
        assert dsctl(*LONGER, "--max-steps=6", "--output-path", "out", "--quiet").code == 0
    finally:
        os.umask(before)
    paths = [path for path in Path("out").rglob("*") if path.name != ".lock"]
    assert {path.suffix for path in paths} >= {".safetensors", ".json", ".jsonl"}
    modes = {path: path.stat().st_mode & 0o777 for path in paths}
    assert {path: mode for path, mode in modes.items() if mode != (0o777 if path.is_dir() else 0o666) & ~mask} == {}


def test_a_run_that_met_a_damaged_picture_is_started_again_by_the_same_command(dsctl: Dsctl):
    good(Path("data"))
    words = [*LONGER, "--max-steps=4", "--no-cache", "--seed=1", "--output-path", "out", "--quiet"]
    picture = sorted(Path("data").glob("*.png"))[1]
    whole = picture.read_bytes()
    middle = len(whole) // 2
    picture.write_bytes(whole[:middle] + bytes(20) + whole[middle + 20 :])
    assert picture.name in dsctl(*words).fault(1)[0]
    assert {path.name for path in Path("out").iterdir()} == {"run.json", "metrics.jsonl"}
    picture.write_bytes(whole)
    assert dsctl(*words).code == 0
    steps = [json.loads(line)["step"] for line in Path("out/metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]
