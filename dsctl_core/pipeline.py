"""BasePipeline: components, the units that prepare what the denoiser reads, and the denoising loop.

Legend: latents, noise and velocity are (B, C, h, w) float32, of clips (B, C, T, h, w); images are (B, 3, H, W) in
[-1, 1].
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from dsctl_core.checkpoint.readers import Readers
from dsctl_core.data.video import FrameRule
from dsctl_core.denoising import CfgScale, ProgressBar, Step, denoise, no_progress_bar, run_step_directly
from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.family import Family, ModelParts, Schedule
from dsctl_core.lora.applied import AppliedLora, lora_applied
from dsctl_core.placement import Placement
from dsctl_core.scheduler import FlowMatchScheduler
from dsctl_core.units import Inputs, PipelineUnit, UnitRunner

if TYPE_CHECKING:
    from typing_extensions import Self

    from dsctl_core.checkpoint.model_config import ModelConfig

DENOISER_ARGUMENT = "dit"  # what `model_fn` calls the denoiser that acts, whichever of the family's it is

# (side network, denoiser, inputs of model_fn) -> a block in which these inputs, with what it adds, are in force
Control = Callable[[nn.Module, nn.Module, Inputs], AbstractContextManager[Inputs]]


@dataclass(frozen=True)
class SideNetwork:
    """A network beside the family's own components, with the units that use it.

    `columns` are those of a row that its units read; a row in which one is missing is refused by them, not here.
    `control` is what the network does during each call of `model_fn`, and `reads` the inputs that it looks at for that;
    see dsctl_core.control.
    """

    name: str
    units: tuple[PipelineUnit, ...]
    columns: tuple[str, ...] = ()
    control: Control | None = None
    reads: tuple[str, ...] = ()


class BasePipeline(nn.Module):
    """The components of one model and how they make a picture.

    Components are attributes under their family's names (`self.dit`), None where not loaded. A family's class sets
    `family`, `units`, `model_fn` and `decoding_models` (the components that make pictures of latents), and writes
    `__call__` and `inputs_from_rows`. `model_fn` takes the denoiser that acts as `dit`, and may take others of
    `beside_the_denoiser` under their own names.
    """

    family: ClassVar[Family]
    beside_the_denoiser: ClassVar[tuple[str, ...]] = ()
    decoding_models: ClassVar[tuple[str, ...]] = ("vae",)

    units: list[PipelineUnit]
    model_fn: Callable[..., Tensor]

    def __init__(
        self,
        models: Mapping[str, nn.Module],
        readers: Readers | None,
        schedule: Schedule,
        *,
        torch_dtype: torch.dtype,
        device: torch.device | str,
        parts: ModelParts | None = None,
    ) -> None:
        """Put the pipeline together.

        Args:
            models: The components that are loaded, by name.
            readers: Its tokenizers and processors (None: it has none).
            schedule: The constants of its noise levels.
            torch_dtype: The dtype of the weights, and of what units compute.
            device: Where it computes.
            parts: What the model consists of, loaded or not (None: what is loaded of what is optional).
        """
        super().__init__()
        for component in self.family.components:
            self.register_module(component.name, models.get(component.name))
        self.readers = readers or Readers(self.family)
        self.parts = parts or self.family.parts(models)
        self.scheduler = FlowMatchScheduler(schedule)
        self.unit_runner = UnitRunner()
        self.side_networks: tuple[SideNetwork, ...] = ()
        self.placement = Placement()
        self.torch_dtype = torch_dtype
        # As a tensor there names it: "cuda" is "cuda:0", so that devices can be compared.
        self.device = torch.empty(0, device=device).device

    @classmethod
    def from_pretrained(
        cls,
        *,
        torch_dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str | None = None,
        model_configs: Sequence[ModelConfig],
        tokenizer_config: ModelConfig | None = None,
        processor_config: ModelConfig | None = None,
        reader_configs: Mapping[str, ModelConfig] | None = None,
        component_dtypes: dict[str, torch.dtype] | None = None,
        only: Sequence[str] | None = None,
        schedule: Schedule | None = None,
        parts: ModelParts | None = None,
    ) -> Self:
        """Load the components that `model_configs` name, frozen and in evaluation mode.

        Args:
            torch_dtype: The dtype of the weights.
            device: Where the pipeline computes (None: the GPU when there is one, else the CPU).
            model_configs: Where the components are.
            tokenizer_config: Where the reader "tokenizer" is, if not beside the components.
            processor_config: Where the reader "processor" is, if not beside the components.
            reader_configs: Where any reader is, by name.
            component_dtypes: The dtype of single components, by name.
            only: The components to load of those that are named (None: all).
            schedule: The schedule where there is no scheduler_config.json (None: the family's).
            parts: What the model consists of (None: what is named, with what its model_index.json says).
        """
        from dsctl_core.checkpoint.load import load_components

        place = torch.device(device if device is not None else "cuda" if torch.cuda.is_available() else "cpu")
        named = {"tokenizer": tokenizer_config, "processor": processor_config}
        given = {name: config for name, config in named.items() if config is not None}
        loaded = load_components(
            cls.family,
            model_configs,
            {**(reader_configs or {}), **given},
            torch_dtype=torch_dtype,
            device=place,
            component_dtypes=component_dtypes,
            only=only,
            schedule=schedule,
            parts=parts,
        )
        about: dict[str, Any] = {"torch_dtype": torch_dtype, "device": place, "parts": loaded.parts}
        return cls(loaded.models, loaded.readers, loaded.schedule, **about).eval()

    @classmethod
    def inputs_from_rows(
        cls, rows: Sequence[Inputs], extra_inputs: Sequence[str] = ()
    ) -> tuple[Inputs, Inputs, Inputs]:
        """Turn dataset rows into (shared, posi, nega) inputs of one training batch; every family writes its own."""
        raise NotImplementedError(f"{cls.__name__} has no inputs_from_rows()")

    def attach_side_network(self, side_network: SideNetwork, model: nn.Module | None) -> None:
        """Put `model` in as a component of its own (None: not loaded), and its units behind those that are there."""
        self.register_module(side_network.name, model)
        self.side_networks = (*self.side_networks, side_network)
        self.units = [*self.units, *side_network.units]

    def row_inputs(self, rows: Sequence[Inputs], extra_inputs: Sequence[str] = ()) -> tuple[Inputs, Inputs, Inputs]:
        """Turn rows into (shared, posi, nega): the family's inputs, and a list of each column of side networks."""
        columns = [name for side_network in self.side_networks for name in side_network.columns]
        own = [name for name in extra_inputs if name not in columns]
        shared, posi, nega = self.inputs_from_rows(rows, own)
        return {**shared, **{name: [row.get(name) for row in rows] for name in columns}}, posi, nega

    def decode_latents(self, latents: Tensor) -> list[Any]:
        """Return the pictures or clips of clean latents as training has them; every family writes its own."""
        raise NotImplementedError(f"{type(self).__name__} has no decode_latents()")

    @property
    def tokenizer(self) -> Any:
        """The reader called "tokenizer", None where there is none."""
        return self.reader("tokenizer") if "tokenizer" in self.readers else None

    def reader(self, name: str) -> Any:
        """Return the tokenizer or processor called `name`, loaded now if need be; an absent one is a DsctlError."""
        return self.readers.get(name)

    def has(self, name: str) -> bool:
        """Return whether the model has the component called `name`, be it loaded or not."""
        return self.family.component(name).name in self.parts.components

    @property
    def in_iteration_models(self) -> tuple[str, ...]:
        """The names of the components that `model_fn` runs: the denoisers, and what it takes beside them."""
        return (*(denoiser.name for denoiser in self.parts.denoisers), *self.beside_the_denoiser)

    def iteration_modules(self) -> dict[str, nn.Module]:
        """Return the loaded components that `model_fn` runs; without any denoiser, raise a DsctlError."""
        denoisers = [denoiser.name for denoiser in self.parts.denoisers]
        if not any(name in self.components for name in denoisers):
            self.component(denoisers[0])
        return {name: model for name, model in self.components.items() if name in self.in_iteration_models}

    def models_of(self, unit: PipelineUnit) -> tuple[str, ...]:
        """Return the components that `unit` uses, without the optional ones that this model does not have."""
        absent = {component.name for component in self.family.components} - set(self.parts.components)
        return tuple(name for name in unit.onload_model_names if name not in absent)

    @property
    def components(self) -> dict[str, nn.Module]:
        """The components that are loaded, by name."""
        models = {name: getattr(self, name) for name in self.component_names}
        return {name: model for name, model in models.items() if model is not None}

    @property
    def component_names(self) -> tuple[str, ...]:
        """The names of all components that there can be: the family's own, then those of side_networks."""
        own = (component.name for component in self.family.components)
        return (*own, *(side_network.name for side_network in self.side_networks))

    def component(self, name: str) -> Any:
        """Return the component called `name`; one that was not loaded is a DsctlError."""
        is_side_network = any(side_network.name == name for side_network in self.side_networks)
        declared = None if is_side_network else self.family.component(name)
        model = getattr(self, name)
        if model is None and declared is None:
            raise DsctlError(f"this needs the {name}, which was not loaded", hint="report this: it should have been")
        if model is None and declared is not None:
            raise DsctlError(
                f"this needs the {name} of {self.family.title}, which was not loaded",
                hint=f"name its weights too: {declared.folder}/ in a model folder",
            )
        return model

    def load_models_to_device(self, names: Sequence[str]) -> None:
        """Move the named components to `self.device`, where they are not there already."""
        for name in names:
            model = self.component(name)
            if any(parameter.device != self.device for parameter in model.parameters()):
                model.to(self.device)

    def check_size(self, height: int, width: int, frames: int = 1) -> None:
        """Refuse a size, or a number of frames, that the model cannot work at, naming the nearest that it can."""
        factor = self.parts.division_factor
        for name, value in (("height", height), ("width", width)):
            if value < factor or value % factor:
                low = max(value // factor, 1) * factor
                nearest = f"{low}" if value <= low else f"{low} or {low + factor}"
                raise UsageError(f"the {name} {value} is not a multiple of {factor}", hint=f"nearest: {nearest}")
        if self.family.time_division is not None:
            FrameRule(frames, *self.family.time_division)
        elif frames != 1:
            raise UsageError(f"{self.family.title} makes pictures, not {frames} frames", hint="leave the frames out")

    def tokens(self, height: int, width: int, frames: int = 1) -> int:
        """Return how many tokens a sample is to the denoiser, from which the shift of its schedule follows."""
        return (height // self.parts.division_factor) * (width // self.parts.division_factor)

    def preprocess_image(self, image: Image.Image) -> Tensor:
        """Return a picture as (1, 3, H, W) float32 in [-1, 1]; where it is transparent it becomes white."""
        if image.has_transparency_data:
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image.convert("RGBA"))
        pixels = torch.from_numpy(np.array(image.convert("RGB"), dtype=np.float32) / 255)  # (H, W, 3)
        return (2 * pixels - 1).permute(2, 0, 1).unsqueeze(0)

    def vae_output_to_image(self, images: Tensor) -> list[Image.Image]:
        """Return (B, 3, H, W) in [-1, 1] as pictures, each pixel rounded to the nearest of 256 levels."""
        levels = (images.float() * 0.5 + 0.5).clamp(0, 1) * 255
        pixels = levels.round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        return [Image.fromarray(each) for each in pixels]

    def run_units(self, shared: Inputs, posi: Inputs, nega: Inputs) -> tuple[Inputs, Inputs, Inputs]:
        """Run all units in order."""
        for unit in self.units:
            shared, posi, nega = self.unit_runner(unit, self, shared, posi, nega)
        return shared, posi, nega

    @contextmanager
    def more_units(self, units: Sequence[PipelineUnit]) -> Iterator[None]:
        """Run `units` behind those that are there, for as long as this lasts."""
        before = self.units
        self.units = [*before, *units]
        try:
            yield
        finally:
            self.units = before

    def denoiser_of(self, timestep: Tensor) -> str:
        """Return the name of the denoiser for `timestep` (B,) or (); levels of two denoisers are a DsctlError."""
        if len(self.parts.denoisers) == 1:
            return self.parts.denoisers[0].name
        first, *others = dict.fromkeys(self.parts.denoiser_at(each).name for each in timestep.flatten().tolist())
        if others:
            raise DsctlError(
                f"one batch has noise levels of the {first} and of the {others[0]}",
                hint="give a batch the levels of one denoiser",
            )
        return first

    def call_model_fn(self, *, latents: Tensor, timestep: Tensor, denoiser: str | None = None, **inputs: Any) -> Tensor:
        """Return the velocity that the model predicts, float32 of the shape of `latents`.

        Hands `model_fn` the network called `denoiser` (None: the one that acts at `timestep`) as `dit`, the other
        components that it takes and, of `inputs`, those that its signature names. An AppliedLora in `inputs["lora"]`
        is in force for this call alone.
        """
        acting = denoiser or self.denoiser_of(timestep)
        running = {name: self.component(name) for name in (acting, *self.beside_the_denoiser)}
        available = {**inputs, **running, "latents": latents, "timestep": timestep, DENOISER_ARGUMENT: running[acting]}
        with ExitStack() as stack:
            lora: AppliedLora | None = inputs.get("lora")
            if lora is not None:
                own = {name: layers for name, layers in lora.items() if name in running}
                stack.enter_context(lora_applied(running, own))
            for side in self.side_networks:
                if side.control is not None:
                    network = self.component(side.name)
                    available = stack.enter_context(side.control(network, running[acting], available))
            return self.model_fn(**self._chosen(available, inputs))

    def _chosen(self, available: Inputs, inputs: Inputs) -> Inputs:
        """Return what of `available` the signature of `model_fn` names."""
        chosen = {}
        for parameter in inspect.signature(self.model_fn).parameters.values():
            if parameter.name in available:
                chosen[parameter.name] = available[parameter.name]
            elif parameter.default is parameter.empty:
                raise DsctlError(
                    f"{self.family.title} needs the input {parameter.name!r}, which was not given",
                    hint=f"given: {', '.join(sorted(inputs)) or 'nothing'}",
                )
        return chosen

    def guide(self, posi: Tensor, nega: Tensor, cfg_scale: float) -> Tensor:
        """Combine the velocities with and without the prompt (classifier-free guidance, arXiv:2207.12598)."""
        return nega + cfg_scale * (posi - nega)

    def denoise(
        self,
        shared: Inputs,
        posi: Inputs,
        nega: Inputs,
        *,
        cfg_scale: CfgScale,
        progress_bar_cmd: ProgressBar = no_progress_bar,
        scheduler: FlowMatchScheduler | None = None,
        run_step: Callable[[Step, Tensor, Tensor], Tensor] = run_step_directly,
    ) -> Tensor:
        """Follow the velocity from `shared["latents"]` along the scheduler's levels down to clean latents.

        Where `shared["latents_mask"]` is 0 the result is `shared["input_latents"]`. `scheduler` is the pipeline's own
        unless another is given; `run_step(step, latents, timestep)` runs a step. Each level is the business of the
        denoiser in whose range it is, which alone is on the device then, with its own `cfg_scale`.
        """
        return denoise(
            self,
            shared,
            posi,
            nega,
            cfg_scale=cfg_scale,
            progress_bar_cmd=progress_bar_cmd,
            levels=scheduler or self.scheduler,
            run_step=run_step,
        )
