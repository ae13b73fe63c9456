"""The benchmark of the real size counts operations rightly, runs on a tiny model, and says what it needs."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.flops import peak_flops, step_flops
from benchmarks.real_size import as_markdown, build_module, cached_row, main

REPOSITORY = Path(__file__).parents[2]
SETTINGS = {"variant": "keep", "tiny": True, "device": "cpu", "rank": 4, "side": 64, "text_tokens": 5}


@pytest.fixture(scope="module")
def counted() -> dict[str, int]:
    """What torch counts in a step of the tiny model, and what the benchmark does."""
    counts = {}
    for variant in ("keep", "recompute"):
        module = build_module({**SETTINGS, "variant": variant})
        dit = module.pipe.dit
        row = {**cached_row(SETTINGS, dit.config.joint_attention_dim), "seed": 1}
        with FlopCounterMode(display=False) as forward:
            loss = module(row)
        with FlopCounterMode(display=False) as backward:
            loss.backward()
        counts[variant] = (forward.get_total_flops(), backward.get_total_flops())
    ours = step_flops(dit, 1, (64 // 16) ** 2, 5)
    # On a CPU torch does not count attention: two products of (S, d) and (d, S) or (S, S) and (S, d) in each block.
    attention = 2 * 2 * 2 * 21 * 21 * 32
    return {"counts": counts, "ours": ours, "attention": attention}


def test_the_operations_are_those_that_torch_counts(counted):
    ours, attention = counted["ours"], counted["attention"]
    assert (ours.forward - attention, ours.backward - 2 * attention) == counted["counts"]["keep"]


def test_recomputing_is_counted_apart(counted):
    more = counted["counts"]["recompute"][1] - counted["counts"]["keep"][1]
    assert 0.9 * more <= counted["ours"].recomputed - counted["attention"] <= 1.5 * more
    assert counted["ours"].model == counted["ours"].forward + counted["ours"].backward


def test_the_real_model_takes_about_four_operations_a_parameter_and_token_and_attention():
    from diffusers import QwenImageTransformer2DModel

    from dsctl_core.families.qwen_image.family import FAMILY

    with torch.device("meta"):
        dit = QwenImageTransformer2DModel(**FAMILY.published["dit"])
    flops = step_flops(dit, 1, 4096, 128)
    attention = 12 * 4224**2 * dit.inner_dim * 60
    image = [
        p for n, p in dit.named_parameters() if n.startswith("transformer_blocks.") and ("img_mlp" in n or ".to_" in n)
    ]
    a_token = sum(p.numel() for p in image)
    assert flops.model == pytest.approx(4 * a_token * 4096 + attention, rel=0.05)
    assert 1e14 < flops.model < 3e14


def test_the_peak_of_a_gpu_is_looked_up_by_its_name():
    assert peak_flops("NVIDIA H100 80GB HBM3") == peak_flops("NVIDIA H200") == 989e12
    assert peak_flops("NVIDIA H100 PCIe") == 756e12
    assert peak_flops("some other") is None


def test_a_tiny_model_is_measured_on_a_cpu(tmp_path, capsys):
    words = ["--tiny", "--device", "cpu", "--side", "64", "--text-tokens", "5", "--steps", "1", "--warm-up", "1"]
    main([*words, "--only", "recompute", "--json", str(tmp_path / "new" / "numbers.json")])
    (result,) = json.loads((tmp_path / "new" / "numbers.json").read_text())
    assert result["step_seconds"] > 0
    assert result["image_tokens"] == 16
    assert result["trained"] == 2 * 6 * 16 * (32 + 32)
    assert (result["allocated_gib"], result["utilisation"]) == (None, None)
    assert "| every block recomputed | " in capsys.readouterr().out


def test_a_variant_that_does_not_fit_is_said_so():
    assert "| nothing recomputed | out of memory |" in as_markdown([{"variant": "keep", "failed": "out of memory"}])


@pytest.mark.parametrize(
    ("words", "problem"), [((), "this needs a GPU"), (("--only", "fast"), "unknown variant 'fast'")]
)
def test_what_cannot_be_measured_is_refused_with_a_hint(python, words, problem):
    environment = {"CUDA_VISIBLE_DEVICES": "", "PATH": "", "PYTHONPATH": str(REPOSITORY)}
    command = [python, "-m", "benchmarks.real_size", *words]
    done = subprocess.run(
        command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {problem}")
    assert "hint: " in done.stderr
