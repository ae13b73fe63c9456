"""Weights are loaded in no more bits than they need, and packed ones go to the device one by one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dsctl_core.commands.infer import infer
from dsctl_core.commands.train import train
from dsctl_core.families.resolve import ResolvedModel
from dsctl_core.memory.quantize import QuantizedLinear, quantize, store_in_fp8
from dsctl_core.options import InferOptions, TrainOptions
from dsctl_core.progress import NoProgress
from dsctl_core.training.model.module import DiffusionTrainingModule
from dsctl_core.training.plan.module import build_module
from dsctl_core.training.plan.plan import plan_training


def options(folder: Path | str, data: str, **more: object) -> TrainOptions:
    usual = {"model": str(folder), "dataset_base_path": data, "output_path": "out", "device": "cpu", "max_steps": 2}
    return TrainOptions(**{**usual, **more})


def built(
    asked: TrainOptions, monkeypatch: pytest.MonkeyPatch
) -> tuple[DiffusionTrainingModule, dict[str, torch.dtype]]:
    """Return the module of a run, and the dtypes that its trained components were loaded in."""
    loaded: dict[str, torch.dtype] = {}
    load = ResolvedModel.load_pipeline

    def noting(self: ResolvedModel, **how: object) -> object:
        loaded.update(how["component_dtypes"])  # type: ignore[call-overload]
        return load(self, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(ResolvedModel, "load_pipeline", noting)
    plan = plan_training(asked, NoProgress())
    try:
        return build_module(plan, NoProgress()), loaded
    finally:
        plan.accelerator.end_training()


def test_only_what_is_trained_is_ever_in_float32(dataset_folder, monkeypatch):
    """The files of the embedded model are in bfloat16, so that its values are the same in both."""
    part = {"trainable_models": "dit.proj_out", "cache": False}
    module, loaded = built(options("tiny", dataset_folder, mixed_precision="bf16", **part), monkeypatch)
    assert loaded == {"dit": torch.bfloat16}
    wide = {name for name, each in module.pipe.dit.named_parameters() if each.dtype == torch.float32}
    assert wide == {"proj_out.weight", "proj_out.bias"}
    whole, loaded = built(options("tiny", dataset_folder, trainable_models="dit", cache=False), monkeypatch)
    assert loaded == {"dit": torch.float32}, "computation in float32 loads in float32"
    tensors = dict(whole.pipe.dit.named_parameters())
    assert all(torch.equal(each.float(), tensors[name]) for name, each in module.pipe.dit.named_parameters())


@pytest.mark.parametrize("kept_on", [None, "cpu"])
@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_a_weight_is_packed_on_the_device(tiny_folder, dataset_folder, monkeypatch, dtype, kept_on):
    """It stays there, but for blocks that are to wait in main memory."""
    module, _ = built(options(tiny_folder, dataset_folder, lora_rank=2, cache=False), monkeypatch)
    dit, device = module.pipe.dit, torch.device("meta")
    others = {name for name, each in dit.named_parameters() if "lora" in name}
    places = (device,) if kept_on is None else (torch.device(kept_on), device)  # two that are not the same
    if dtype == torch.int8:
        quantize(dit, "int8", torch.float32, *places)
    else:
        store_in_fp8(dit, torch.float32, *places)
    layers = [each for each in dit.modules() if isinstance(each, QuantizedLinear)]
    assert layers and all(each.weight.is_meta and each.weight.dtype == dtype for each in layers)
    assert not any(each.is_meta for name, each in dit.named_parameters() if name in others)


def test_a_lora_of_packed_weights_is_one_for_the_whole_model(tiny_folder, dataset_folder):
    held = {"quantize": "dit=int8,text_encoder=float8", "lora_rank": 2, "max_steps": 3}
    whole = train(options(tiny_folder, dataset_folder, lora_rank=2, max_steps=3, output_path="whole"))
    packed = train(options(tiny_folder, dataset_folder, output_path="packed", **held))
    assert packed.final_loss == pytest.approx(whole.final_loss, rel=0.02) and packed.final_loss != whole.final_loss
    size = {"height": 32, "width": 48, "num_inference_steps": 2, "model": str(tiny_folder), "device": "cpu"}
    lora = (str(packed.checkpoint),)
    made = [
        infer(InferOptions(prompt="a", output=f"{name}.png", lora=lora, **size, **how)).files[0]  # type: ignore[arg-type]
        for name, how in (("plain", {}), ("held", {"quantize": "dit=int8"}))
    ]
    assert made[0].read_bytes() != made[1].read_bytes()
