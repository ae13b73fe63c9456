"""`infer --offload`: as little waits in main memory as the free memory of the GPU allows, and the pictures stay."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dsctl_core.commands import infer as inference
from dsctl_core.commands.infer_offload import choose_offload, component_bytes, fitting, place
from dsctl_core.errors import UsageError
from dsctl_core.families.resolve import resolve_model
from dsctl_core.memory.offload import OffloadedLinear
from dsctl_core.options import InferOptions
from tests.tiny_models import write_tiny_model

GIB = 2**30
CUDA = torch.device("cuda")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model("qwen-image", tmp_path_factory.mktemp("models") / "tiny")


def build(model: Path, **values: object) -> InferOptions:
    return InferOptions(**{"model": str(model), "prompt": "a cat", **values})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("sizes", "denoisers", "free", "expected"),
    [
        ({"dit": 4, "text_encoder": 8, "vae": 1}, ["dit"], 20, "none"),
        ({"dit": 4, "text_encoder": 8, "vae": 1}, ["dit"], 12, "components"),
        ({"dit": 41, "text_encoder": 16, "vae": 1}, ["dit"], 80, "none"),
        ({"dit": 41, "text_encoder": 16, "vae": 1}, ["dit"], 48, "components"),
        ({"dit": 41, "text_encoder": 16, "vae": 1}, ["dit"], 24, "blocks"),
        ({"dit": 28, "dit_2": 28, "text_encoder": 11, "vae": 1}, ["dit", "dit_2"], 48, "none"),
        ({"dit": 28, "dit_2": 28, "text_encoder": 11, "vae": 1}, ["dit", "dit_2"], 40, "components"),
    ],
)
def test_as_little_waits_as_the_free_memory_allows(
    sizes: dict[str, int], denoisers: list[str], free: int, expected: str
) -> None:
    in_bytes = {name: size * GIB for name, size in sizes.items()}
    assert fitting(in_bytes, denoisers, free * GIB, free * GIB) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_bytes_of_components_are_those_of_their_weights(model: Path, dtype: torch.dtype) -> None:
    resolved = resolve_model(str(model))
    pipe = inference.load(build(model), resolved, torch.device("cpu"), dtype)
    found = component_bytes(build(model), resolved, dtype)
    assert found == {
        name: sum(each.numel() * dtype.itemsize for each in component.parameters())
        for name, component in pipe.components.items()
    }
    packed = component_bytes(build(model, quantize="dit=nf4"), resolved, dtype)
    assert packed["dit"] == pytest.approx(0.57 / dtype.itemsize * found["dit"], rel=1e-3)
    assert packed["vae"] == found["vae"]


def test_what_is_chosen_is_told_and_what_is_asked_for_is_done(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resolved = resolve_model(str(model))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (80 * GIB, 80 * GIB))
    assert choose_offload(build(model), resolved, CUDA, torch.bfloat16) == ("none", None)
    assert choose_offload(build(model, offload="blocks"), resolved, CUDA, torch.bfloat16) == ("blocks", None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (3 * GIB, 80 * GIB))
    chosen, why = choose_offload(build(model), resolved, CUDA, torch.bfloat16)
    assert chosen == "blocks"
    assert why is not None
    assert "not all fits into the 3 GiB that are free" in why
    assert "--offload blocks" in why


@pytest.mark.parametrize("asked", ["none", "components", "blocks"])
def test_on_a_cpu_it_is_refused(model: Path, asked: str) -> None:
    with pytest.raises(UsageError, match=f"--offload {asked} has no effect on a CPU"):
        choose_offload(build(model, offload=asked), resolve_model(str(model)), torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("more", [{}, {"quantize": "dit=int8"}])
@pytest.mark.parametrize("offload", ["components", "blocks"])
def test_the_picture_is_the_same_wherever_the_weights_wait(model: Path, offload: str, more: dict[str, str]) -> None:
    resolved = resolve_model(str(model))
    settings = {"prompt": "a fox", "height": 32, "width": 48, "num_inference_steps": 2, "cfg_scale": 2.0, "seed": 1}
    plain = inference.load(build(model, **more), resolved, torch.device("cpu"), torch.float32)(**settings)
    pipe = inference.load(build(model, **more), resolved, torch.device("cpu"), torch.float32)
    place(pipe, offload)  # type: ignore[arg-type]
    assert pipe.placement.apart
    waiting = [each for each in pipe.dit.modules() if isinstance(each, OffloadedLinear)]
    assert bool(waiting) is (offload == "blocks")
    assert pipe(**settings).tobytes() == plain.tobytes()
