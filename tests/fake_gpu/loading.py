"""Load models onto the fake device: their published configs, in the order in which weights are loaded and moved."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch import Tensor, nn

from dsctl_core.families.resolve import ResolvedModel
from dsctl_core.memory.dtypes import dtype_of, float32_parts
from dsctl_core.pipeline import BasePipeline
from dsctl_core.training.dry_run.fake_tensors import Simulation
from dsctl_core.training.dry_run.simulated import SimulatedModel
from tests.fake_gpu.counting import Gpu


class _OnHost(Simulation):
    """Makes weights in main memory, in the mode of the device."""

    def __init__(self, gpu: Gpu) -> None:
        self.mode = gpu.mode

    def _taken(self, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
        with self.mode:
            fake = torch.empty(tensor.shape, dtype=dtype or tensor.dtype, device="cpu")
        return nn.Parameter(fake, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else fake


@contextmanager
def loads_fakes(gpu: Gpu, depth: int | None, without: Collection[str] = ()) -> Iterator[None]:
    """Let every model that is loaded inside the context be one of fake tensors, with `depth` blocks of each kind."""

    def load_pipeline(
        resolved: ResolvedModel,
        *,
        torch_dtype: torch.dtype,
        device: torch.device | str | None = None,
        only: Sequence[str] | None = None,
        component_dtypes: dict[str, torch.dtype] | None = None,
        on_host: Collection[str] = (),
        in_parts: Collection[str] = (),
    ) -> BasePipeline:
        place = torch.device("cuda" if device is None else device)
        model = SimulatedModel(resolved, None, depth)
        absent = {name for name in model.loaded if only is not None and name not in only} | set(without)
        dtypes = component_dtypes or {}
        pipe = model.pipeline(_OnHost(gpu), torch_dtype, lambda name: dtypes.get(name, torch_dtype), absent)
        waiting = [each.name for each in resolved.parts.denoisers[1:]]
        for name, component in pipe.components.items():
            if name not in (*waiting, *on_host, *in_parts):
                component.to(place)
        pipe.device = torch.device(place.type, 0) if place.type == "cuda" else place
        return pipe

    with patch.object(ResolvedModel, "load_pipeline", load_pipeline):
        yield


def wide_weights(components: Mapping[str, nn.Module], dtype: torch.dtype) -> list[str]:
    """Return what is wrong with frozen weights: those in float32 that the model does not declare as such."""
    wrong = []
    for component, model in components.items():
        parts = float32_parts(model)
        for name, parameter in model.named_parameters():
            wanted = dtype_of(name, parameter, dtype, parts)
            if not parameter.requires_grad and parameter.itemsize > wanted.itemsize:
                wrong.append(f"{component}.{name} is frozen, and held in {parameter.dtype}")
    return wrong[:3]
