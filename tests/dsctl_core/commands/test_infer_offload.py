"""`infer --offload`: as little waits in main memory as the free memory of the GPU allows, and the pictures stay."""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from dsctl_core.commands import infer as inference
from dsctl_core.commands import infer_offload
from dsctl_core.commands.infer_offload import SPARE, Waiting, choose_offload, component_bytes, fitted, fitting, place
from dsctl_core.errors import UsageError
from dsctl_core.families.resolve import resolve_model
from dsctl_core.memory.fused import FusedRMSNorm, as_on_a_gpu
from dsctl_core.memory.offload import OffloadedLinear
from dsctl_core.options import InferOptions
from dsctl_core.training.dry_run.drawing import DEPTH, DrawingMemory, Moment, drawing_memory
from dsctl_core.training.dry_run.gpu_rules import reserved
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


CALL = {"prompt": "a cat", "height": 64, "width": 64, "cfg_scale": 2.0}


def drawing(dit: int, text_encoder: int, tensors: int) -> DrawingMemory:
    """Return a drawing by a denoiser of ten blocks of a tenth of its weights, with `tensors` beside it."""
    asked = [("text_encoder", 0), ("dit", tensors), ("vae", tensors)]
    return DrawingMemory(
        tuple(Moment(frozenset([name]), beside * GIB) for name, beside in asked),
        {"dit": dit * GIB, "text_encoder": text_encoder * GIB, "vae": 0},
        {"dit": (dit * GIB // 10,) * 10},
    )


@pytest.mark.parametrize(
    ("room", "expected"),
    [
        (72, Waiting()),
        (71, Waiting("components")),  # 3 % of fragments, and half a GiB for the context
        (49, Waiting("components")),
        (47, Waiting("blocks", 3)),  # two blocks are on the device in any case
        (24, Waiting("blocks", 9)),
        (5, Waiting("blocks", 10)),  # which does not suffice
    ],
)
def test_no_more_blocks_wait_than_the_room_asks_for(room: int, expected: Waiting) -> None:
    memory = drawing(dit=40, text_encoder=22, tensors=7)
    found, needed = fitted(memory, room * GIB)
    assert found == expected
    assert (needed <= room * GIB) is (room > 5)
    packed = replace(memory, blocks={"dit": ()})
    assert fitted(packed, 24 * GIB)[0] == Waiting("components"), "of a quantized denoiser no block can wait"


def test_what_is_chosen_is_told_and_what_is_asked_for_is_done(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resolved, bf16 = resolve_model(str(model)), torch.bfloat16
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (80 * GIB, 80 * GIB))
    assert choose_offload(build(model), resolved, CUDA, bf16, CALL) == (Waiting(), None)
    assert choose_offload(build(model, offload="blocks"), resolved, CUDA, bf16, CALL) == (Waiting("blocks"), None)
    predicted = drawing_memory(resolved, CALL, bf16)
    tight = int((reserved(predicted.peak(apart=True), 0) - 1) / (1 - SPARE))  # a byte too few for components alone
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (tight, tight))
    monkeypatch.setattr(infer_offload, "EASY", 2**40)
    chosen, why = choose_offload(build(model), resolved, CUDA, bf16, CALL)
    assert chosen == fitted(predicted, tight - int(SPARE * tight))[0] and chosen.place == "blocks"
    assert f"components, and {chosen.blocks} of the 2 blocks of the denoiser, wait" in (why or "")
    assert "--offload blocks" in (why or "")
    # Where it cannot be predicted, the sizes of the weights decide.
    monkeypatch.setattr(infer_offload, "_predicted", lambda *_: None)
    assert choose_offload(build(model), resolved, CUDA, bf16, CALL)[0] == Waiting("blocks")


def test_the_whole_model_is_predicted_from_a_short_one() -> None:
    """The embedded model has more blocks than the short one, and is small enough to be counted whole."""
    resolved = resolve_model("tiny")
    found, whole = (drawing_memory(resolved, CALL, torch.bfloat16, depth=depth) for depth in (None, 99))
    assert found.most_blocks == whole.most_blocks > DEPTH
    for how in ({}, {"apart": True}, {"apart": True, "waiting_blocks": 4}):
        assert found.peak(**how) == whole.peak(**how) > 0  # type: ignore[arg-type]


@pytest.mark.parametrize("asked", ["none", "components", "blocks"])
def test_on_a_cpu_it_is_refused(model: Path, asked: str) -> None:
    with pytest.raises(UsageError, match=f"--offload {asked} has no effect on a CPU"):
        choose_offload(build(model, offload=asked), resolve_model(str(model)), torch.device("cpu"), torch.float32, CALL)


def test_norms_are_one_kernel_on_a_gpu_and_on_a_cpu_the_picture_is_that_of_plain_ones_to_the_bit(model: Path) -> None:
    resolved = resolve_model(str(model))
    settings = {"prompt": "a fox", "height": 32, "width": 48, "num_inference_steps": 2, "cfg_scale": 2.0, "seed": 1}
    plain = resolved.load_pipeline(torch_dtype=torch.float32, device="cpu")
    pipe = inference.load(build(model), resolved, torch.device("cpu"), torch.float32)
    counts: list[Counter[str]] = []
    for gpu in (False, True):
        with _Called() as called, as_on_a_gpu() if gpu else nullcontext():
            picture = pipe(**settings)
        counts.append(called.names)
        assert gpu or picture.tobytes() == plain(**settings).tobytes()
    of_cpu, of_gpu = counts
    norms = sum(isinstance(each, FusedRMSNorm) for each in pipe.dit.modules())
    # Two steps of two passes. The text encoder has norms of its own, which stay.
    assert norms > 4 and of_cpu["rsqrt"] - of_gpu["rsqrt"] == 4 * norms
    assert of_gpu["rms_norm"] - of_cpu["rms_norm"] == 4 * norms


class _Called(TorchFunctionMode):
    """Counts the functions of torch that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names[getattr(func, "__name__", "")] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("more", [{}, {"quantize": "dit=int8"}])
@pytest.mark.parametrize("offload", ["components", "blocks"])
def test_the_picture_is_the_same_wherever_the_weights_wait(model: Path, offload: str, more: dict[str, str]) -> None:
    resolved = resolve_model(str(model))
    settings = {"prompt": "a fox", "height": 32, "width": 48, "num_inference_steps": 2, "cfg_scale": 2.0, "seed": 1}
    plain = inference.load(build(model, **more), resolved, torch.device("cpu"), torch.float32)(**settings)
    pipe = inference.load(build(model, **more), resolved, torch.device("cpu"), torch.float32)
    place(pipe, Waiting(offload))  # type: ignore[arg-type]
    assert pipe.placement.apart
    waiting = [each for each in pipe.dit.modules() if isinstance(each, OffloadedLinear)]
    assert bool(waiting) is (offload == "blocks")
    assert pipe(**settings).tobytes() == plain.tobytes()
