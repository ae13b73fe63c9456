"""A mistake in a config is an error that names its key, and no run with other settings."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dsctl_core.commands.import_config import import_config
from dsctl_core.errors import DsctlError
from dsctl_core.options.first_steps import ImportOptions
from tests.dsctl_core.imports.examples import EXAMPLES
from tests.dsctl_core.imports.making import process, write

KOHYA = "accelerate launch qwen_image_train_network.py --dit d --vae v --network_module networks.lora_qwen_image"
DIFFSYNTH = EXAMPLES["diffsynth"]["train.sh"].strip()
# The file, its text, and the key that the error must name.
MISTAKES = {
    **{
        f"ai-toolkit steps {value!r}": ("a.yaml", process(train={"steps": value}), "train.steps")
        for value in ("two", [1], -5, 0, True, 1.5)
    },
    **{
        f"ai-toolkit lr {value!r}": ("a.yaml", process(train={"lr": value}), "train.lr")
        for value in (float("nan"), float("inf"), -1e-4, "fast", [1], True)
    },
    **{
        f"ai-toolkit rank {value!r}": ("a.yaml", process(network={"type": "lora", "linear": value}), "network.linear")
        for value in (0, -1, "big", [4], 1e9, True)
    },
    "ai-toolkit network": ("a.yaml", process(network="lora"), "network"),
    "ai-toolkit trigger": ("a.yaml", process(trigger_word=[3]), "trigger_word"),
    "ai-toolkit scheduler": ("a.yaml", process(train={"lr_scheduler": [1]}), "lr_scheduler"),
    "ai-toolkit optimizer": ("a.yaml", process(train={"optimizer": 8}), "train.optimizer"),
    "ai-toolkit size": ("a.yaml", process(datasets=[{"folder_path": "d", "resolution": ["x"]}]), "resolution"),
    "ai-toolkit repeats": ("a.yaml", process(datasets=[{"folder_path": "d", "num_repeats": 0}]), "num_repeats"),
    "ai-toolkit weights": (
        "a.yaml",
        process(datasets=[{"folder_path": "d", "loss_multiplier": -1}, {"folder_path": "e"}]),
        "datasets[0].loss_multiplier",
    ),
    "kohya rank": ("a.sh", f"{KOHYA} --network_dim 0", "network_dim"),
    "kohya steps": ("a.sh", f"{KOHYA} --network_dim 8 --max_train_steps two", "max_train_steps"),
    "kohya steps without a number": ("a.sh", f"{KOHYA} --network_dim 8 --max_train_steps", "max_train_steps"),
    "kohya shift": ("a.sh", f"{KOHYA} --timestep_sampling shift --discrete_flow_shift nan", "discrete_flow_shift"),
    "kohya size": ("a.toml", '[[datasets]]\nimage_directory = "d"\nresolution = [64, -1]\n', "resolution"),
    "diffsynth rank": ("a.sh", f"{DIFFSYNTH} --lora_rank none", "lora_rank"),
    "diffsynth rate": ("a.sh", f"{DIFFSYNTH} --learning_rate nan", "learning_rate"),
    "diffusion-pipe rank": (
        "a.toml", 'output_dir = "o"\n[model]\ntype = "wan"\n[adapter]\ntype = "lora"\nrank = 0\n', "adapter.rank"
    ),
    "diffusion-pipe epochs": ("a.toml", 'output_dir = "o"\nepochs = "x"\n[model]\ntype = "wan"\n', "epochs"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_value_that_is_a_mistake_is_an_error_that_names_its_key(name: str):
    file, text, key = MISTAKES[name]
    with pytest.raises(DsctlError, match=rf"^{re.escape(file)}: \S*{re.escape(key)} is .*, which is ") as caught:
        import_config(ImportOptions(files=write({file: text})))
    assert caught.value.hint and not Path("run.toml").exists()


@pytest.mark.parametrize(
    ("file", "text", "rank"),
    [
        ("a.yaml", process(network={"type": "lora"}), 4),
        ("a.yaml", process(network={}), 4),
        ("a.yaml", process(network={"type": "lora", "linear": None}), 4),
        ("a.yaml", process(network={"type": "locon", "linear": 8}), 8),
        ("a.yaml", process(network=None), None),
        ("a.toml", 'output_dir = "o"\n[model]\ntype = "wan"\n[adapter]\ntype = "lora"\n', "missing"),
        ("a.toml", 'output_dir = "o"\n[model]\ntype = "wan"\n', None),
        ("a.sh", KOHYA, "missing"),
        ("a.sh", "python train.py --dataset_base_path d --lora_base_model dit", "left"),
    ],
)
def test_the_whole_model_is_trained_only_where_no_network_was_given(file: str, text: str, rank: int | str | None):
    draft = import_config(ImportOptions(files=write({file: text}))).draft
    assert draft.options.get("lora_rank") == (rank if isinstance(rank, int) else None)
    assert ("trainable_models" in draft.options) == (rank is None)
    assert ("lora_rank" in draft.missing) == (rank == "missing")
