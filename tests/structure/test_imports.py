"""Imports point one way, the command line stays light, and no file outside families/ names a family."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.structure import rules
from tests.structure.graph import Sources, find_cycles, missing_imports, read_sources, strongly_connected


@pytest.fixture(scope="module")
def sources() -> Sources:
    return read_sources(Path(__file__).parents[2])


def test_both_packages_and_a_family_are_seen(sources: Sources):
    assert {"dsctl/app.py", "dsctl_core/units.py", "dsctl_core/families/__init__.py"} <= set(sources)
    assert "qwen" in rules.family_words(sources)


def test_imports_point_one_way(sources: Sources):
    assert rules.imports_out_of_order(sources) == []


def test_every_module_that_is_imported_is_there(sources: Sources):
    assert missing_imports(sources) == []


def test_an_import_of_a_module_that_is_gone_is_found():
    files = {"p/a.py": "", "b.py": "def f():\n    from dsctl_core.p.gone import g\n    import dsctl_core.q, torch.gone"}
    assert missing_imports(planted(files)) == [
        "dsctl_core/b.py imports dsctl_core.p.gone, which is not there",
        "dsctl_core/b.py imports dsctl_core.q, which is not there",
    ]


def test_no_modules_and_no_packages_import_one_another(sources: Sources):
    assert find_cycles(sources) == []


def test_the_command_line_calls_the_library_by_its_commands(sources: Sources):
    assert rules.imports_past_commands(sources) == []


def test_light_modules_import_nothing_heavy(sources: Sources):
    assert rules.heavy_imports(sources) == []


def test_what_was_written_elsewhere_is_read_by_the_readers_that_check_it(sources: Sources):
    assert rules.unchecked_reading(sources) == []
    for path in rules.READERS:
        assert rules.unchecked_reading({f"dsctl_core/{path}": sources[path]}) != []
    assert rules.unchecked_reading({"dsctl_core/a.py": "import torch\ntorch.load(file)"}) != []


def test_no_file_outside_families_names_a_family(sources: Sources):
    assert rules.named_families(sources, rules.family_words(sources)) == []


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("dsctl_core/losses.py", "from dsctl.out import result"),
        ("dsctl_core/losses.py", "def f():\n    import dsctl.app"),
        ("dsctl_core/errors.py", "from dsctl_core.checkpoint import files"),
        ("dsctl_core/data/check.py", "from dsctl_core import pipeline"),
        ("dsctl_core/pipeline.py", "import dsctl_core.families.qwen_image.units"),
        ("dsctl_core/families/qwen_image/units.py", "from dsctl_core.training.loop.loop import launch_training_task"),
        ("dsctl_core/units.py", "from .errors import DsctlError"),
        ("dsctl_core/helpers.py", ""),
        ("dsctl_core/lora/merge.py", "from dsctl_core.pipeline import BasePipeline"),
        ("dsctl_core/lora/merge.py", "def f():\n    from dsctl_core.pipeline import BasePipeline"),
        ("dsctl_core/template/check.py", "from dsctl_core.training.loop import loop"),
        ("dsctl_core/losses/sft.py", "from dsctl_core import ModelLogger"),
        ("dsctl/app.py", "from tests.tiny_models import make"),
    ],
)
def test_an_import_the_wrong_way_is_found(path: str, text: str):
    assert rules.imports_out_of_order({path: text}) != []


CYCLES = {
    "two modules": {"a.py": "from dsctl_core.b import f", "b.py": "import dsctl_core.a"},
    "three modules": {
        "p/a.py": "import dsctl_core.p.b",
        "p/b.py": "import dsctl_core.p.c",
        "p/c.py": "from dsctl_core.p import a",
    },
    "inside functions": {
        "p/a.py": "def f():\n    from dsctl_core.q.b import g",
        "q/b.py": "def g():\n    from dsctl_core.p.a import f",
    },
    "packages without a circle of modules": {
        "p/a.py": "import dsctl_core.q.a",
        "q/a.py": "",
        "q/b.py": "import dsctl_core.p.b",
        "p/b.py": "",
    },
    "rooms of a package": {
        "p/r/a.py": "import dsctl_core.p.s.a",
        "p/s/a.py": "",
        "p/s/b.py": "import dsctl_core.p.r.b",
        "p/r/b.py": "",
    },
    "a package and its module": {"p/__init__.py": "import dsctl_core.p.a", "p/a.py": "from dsctl_core.p import f"},
    "where no type checker looks": {
        "a.py": "if TYPE_CHECKING:\n    pass\nelse:\n    import dsctl_core.b",
        "b.py": "import dsctl_core.a",
    },
}


def planted(files: dict[str, str]) -> Sources:
    return {f"dsctl_core/{path}": text for path, text in files.items()}


@pytest.mark.parametrize("files", CYCLES.values(), ids=CYCLES)
def test_a_circle_of_imports_is_found(files: dict[str, str]):
    assert len(find_cycles(planted(files))) == 1


def test_a_circle_is_told_with_the_imports_that_make_it():
    (problem,) = find_cycles(planted(CYCLES["packages without a circle of modules"]))
    assert problem == (
        "dsctl_core: p, q import one another: dsctl_core.p.a -> dsctl_core.q.a; dsctl_core.q.b -> dsctl_core.p.b"
    )


@pytest.mark.parametrize(
    "files",
    [
        {"a.py": "import dsctl_core.b", "b.py": "import dsctl_core.c", "c.py": ""},
        {"a.py": "import dsctl_core.b", "b.py": "if TYPE_CHECKING:\n    import dsctl_core.a"},
        {"p/__init__.py": "from dsctl_core.p.a import f", "p/a.py": "import dsctl_core.p.b", "p/b.py": ""},
    ],
)
def test_what_leads_nowhere_back_is_no_circle(files: dict[str, str]):
    assert find_cycles(planted(files)) == []


def test_each_circle_is_found_once_and_whole():
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": {"e"}, "e": {"d"}, "f": {"a"}}
    assert strongly_connected(graph) == [{"a", "b", "c"}, {"d", "e"}]


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("dsctl/commands/infer.py", "from dsctl_core.lora import load_lora\nimport dsctl_core.commands.infer"),
        (
            "dsctl/commands/infer.py",
            "def f():\n    from dsctl_core.commands import infer\n    import dsctl_core.template.trust",
        ),
        ("dsctl/commands/infer.py", "from dsctl_core.commands.inference import infer"),
        ("dsctl/commands/infer.py", "from dsctl_core import load_lora\nimport dsctl_core.commands.infer"),
        ("dsctl/confirm_trust.py", "from dsctl_core.template import trust"),
        ("dsctl/launch.py", "from dsctl_core.training.loop.loop import launch_training_task"),
    ],
)
def test_an_import_past_the_commands_is_found(path: str, text: str):
    assert len(rules.imports_past_commands({path: text})) == 1


def test_a_command_may_import_what_it_calls_and_what_both_sides_speak_in():
    text = "from dsctl_core.options import InferOptions\nfrom dsctl_core.errors import DsctlError\n"
    text += "def f():\n    from dsctl_core.commands.infer import infer"
    assert rules.imports_past_commands({"dsctl/commands/infer.py": text}) == []


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("dsctl/app.py", "import torch"),
        ("dsctl/commands/train.py", "from PIL import Image"),
        ("dsctl/flags.py", "try:\n    import numpy\nexcept ImportError:\n    numpy = None"),
        ("dsctl_core/options/train.py", "from torch import Tensor"),
        ("dsctl_core/families/qwen_image/family.py", "import diffusers.models"),
        ("dsctl_core/family.py", "class Family:\n    import pandas"),
    ],
)
def test_a_heavy_import_is_found(path: str, text: str):
    assert rules.heavy_imports({path: text}) != []


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("dsctl/app.py", "def f():\n    import torch"),
        ("dsctl/out.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch"),
        ("dsctl_core/pipeline.py", "import torch"),
        ("dsctl/app.py", "import torchlight"),
    ],
)
def test_an_import_that_costs_the_command_line_nothing_is_allowed(path: str, text: str):
    assert rules.heavy_imports({path: text}) == []


@pytest.mark.parametrize(
    "text",
    [
        'if family.name == "qwen-image": pass',
        "from dsctl_core.families.qwen_image.pipeline import QwenImagePipeline",
        "x = {'text_encoder': 'Qwen2_5_VLForConditionalGeneration'}",
        "def load_qwen(): ...",
        "f(qwen=1)",
        "LAYOUTS = {'two-streams': TABLE}",
        "TWO_STREAMS = 1",
        "table = {'double_blocks.{}.img_attn.proj': 'x'}",
    ],
)
def test_a_named_family_is_found(text: str):
    assert rules.named_families({"dsctl_core/training/model/module.py": text}, {"qwen"}) != []


def test_a_family_may_be_named_at_home_and_in_comments_and_docstrings():
    text = '"""Works for qwen-image."""\nx = 1  # as in qwen-image'
    assert rules.named_families({"dsctl_core/lora/keys.py": text}, {"qwen"}) == []
    assert rules.named_families({"dsctl_core/families/qwen_image/units.py": "qwen = 1"}, {"qwen"}) == []


@pytest.mark.parametrize("module", ["dsctl.app", "dsctl_core", "dsctl_core.options", "dsctl_core.families"])
def test_importing_it_loads_no_heavy_library(module: str):
    code = f"import sys, json, {module}; print(json.dumps(sorted(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert set(json.loads(loaded)) & rules.HEAVY == set()
