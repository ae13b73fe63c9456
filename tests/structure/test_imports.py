"""Imports point one way, the command line stays light, and no file outside families/ names a family."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.structure import rules


@pytest.fixture(scope="module")
def sources() -> rules.Sources:
    return rules.read_sources(Path(__file__).parents[2])


def test_both_packages_and_a_family_are_seen(sources: rules.Sources):
    assert {"dsctl/app.py", "dsctl_core/units.py", "dsctl_core/families/__init__.py"} <= set(sources)
    assert "qwen" in rules.family_words(sources)


def test_imports_point_one_way(sources: rules.Sources):
    assert rules.upward_imports(sources) == []


def test_light_modules_import_nothing_heavy(sources: rules.Sources):
    assert rules.heavy_imports(sources) == []


def test_no_file_outside_families_names_a_family(sources: rules.Sources):
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
        ("dsctl/app.py", "from tests.tiny_models import make"),
    ],
)
def test_an_import_the_wrong_way_is_found(path: str, text: str):
    assert rules.upward_imports({path: text}) != []


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
