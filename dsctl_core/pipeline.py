"""Define BasePipeline: components, the units that prepare the inputs of the denoiser, and the denoising loop.

Legend: latents, noise and velocity are (B, C, h, w) float32, for clips (B, C, T, h, w); images are (B, 3, H, W) in
[-1, 1].
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn

from dsctl_core.checkpoint.readers import Readers
from dsctl_core.data.frame_rule import FrameRule
from dsctl_core.denoising import CfgScale, ProgressBar, Step, denoise, no_progress_bar, run_step_directly
from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.family import Family, ModelParts, Schedule
from dsctl_core.lora.applied import AppliedLora, lora_applied
from dsctl_core.options.base import Solver
from dsctl_core.pixels import to_images, to_pixels
from dsctl_core.placement import Placement
from dsctl_core.scheduler import FlowMatchScheduler
from dsctl_core.side_network import SideNetwork
from dsctl_core.units import Inputs, PipelineUnit, UnitRunner

if TYPE_CHECKING:
    from typing_extensions import Self

    from dsctl_core.checkpoint.model_config import ModelConfig

DENOISER_ARGUMENT = "dit"  # parameter of `model_fn` that receives the denoiser in use, whatever its name in the family


class BasePipeline(nn.Module):
    """Base class of all pipelines: the components of one model, and how they generate images or clips.

    Components are attributes with the names that the family declares (`self.dit`), None if not loaded. The subclass of
    a family sets `family`, `units`, `model_fn` and `decoding_models` (the components that decode latents), and
    implements `__call__` and `inputs_from_rows`. `model_fn` receives the denoiser in use as `dit`, and components in
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
        defaults: Mapping[str, Any] | None = None,
    ) -> None:
        """Build the pipeline from loaded components.

        Args:
            models: The loaded components by name.
            readers: Tokenizers and processors (None: no readers).
            schedule: Constants of the noise levels.
            torch_dtype: Dtype of the weights and of the outputs of units.
            device: Device of the computation.
            parts: Parts of the model, loaded or not (None: all required components, and the optional ones in `models`).
            defaults: Values of the arguments of a call that are left out (None: those of the family).
        """
        super().__init__()
        for component in self.family.components:
            self.register_module(component.name, models.get(component.name))
        self.readers = readers or Readers(self.family)
        self.parts = parts or self.family.parts(models, config=self._denoiser_config(models))
        self.defaults = {**self.family.defaults, **(defaults or {})}
        self.scheduler = FlowMatchScheduler(schedule)
        self.solver: Solver = schedule.solver  # of inference; losses that denoise take Euler steps
        self.unit_runner = UnitRunner()
        self.side_networks: tuple[SideNetwork, ...] = ()
        self.further_columns: tuple[str, ...] = ()
        self.placement = Placement()
        self.torch_dtype = torch_dtype
        # The device as tensors report it, "cuda:0" for "cuda", so that devices can be compared.
        self.device = torch.empty(0, device=device).device

    @classmethod
    def _denoiser_config(cls, models: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """Return the config of the first denoiser in `models` if the kind of the model follows from it."""
        if cls.family.config_kind is None:
            return None
        return next((models[name].config for name in cls.family.denoiser_names() if name in models), None)

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
        on_host: Collection[str] = (),
        in_parts: Collection[str] = (),
        only: Sequence[str] | None = None,
        schedule: Schedule | None = None,
        parts: ModelParts | None = None,
        defaults: Mapping[str, Any] | None = None,
    ) -> Self:
        """Load the components that `model_configs` name, frozen and in evaluation mode.

        Raises DsctlError for a missing, damaged or incomplete component.

        Args:
            torch_dtype: Dtype of the weights.
            device: Device of the computation (None: the GPU if there is one, else the CPU).
            model_configs: Paths or repositories of the components.
            tokenizer_config: Path or repository of the reader "tokenizer", if it is not next to the components.
            processor_config: Path or repository of the reader "processor", if it is not next to the components.
            reader_configs: Path or repository of each reader, by name.
            component_dtypes: Dtype of single components by name; the others have `torch_dtype`.
            on_host: Names of components that stay in main memory, on which something is done before they are moved.
            in_parts: Names of components that are divided between processes; see `load_components`.
            only: Names of the components to load (None: all in `model_configs`).
            schedule: Schedule to use without a scheduler_config.json (None: that of the family).
            parts: Parts of the model (None: derived from `model_configs` and the model_index.json).
            defaults: Values of the arguments of a call that are left out (None: those of the model folder).
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
            on_host=on_host,
            in_parts=in_parts,
            only=only,
            schedule=schedule,
            parts=parts,
        )
        about: dict[str, Any] = {"torch_dtype": torch_dtype, "device": place, "parts": loaded.parts}
        about["defaults"] = loaded.defaults if defaults is None else defaults
        return cls(loaded.models, loaded.readers, loaded.schedule, **about).eval()

    @classmethod
    def inputs_from_rows(
        cls, rows: Sequence[Inputs], extra_inputs: Sequence[str] = ()
    ) -> tuple[Inputs, Inputs, Inputs]:
        """Return the inputs (shared, posi, nega) of one training batch from dataset rows; every family implements it.

        `extra_inputs` are the names of row columns to use beyond those that every row has.
        """
        raise NotImplementedError(f"{cls.__name__} has no inputs_from_rows()")

    def default(self, name: str, value: Any) -> Any:
        """Return `value`, or the model's own value of the option `name` if it is None."""
        return self.defaults[name] if value is None else value

    def attach_side_network(self, side_network: SideNetwork, model: nn.Module | None) -> None:
        """Add `model` as a component (None: not loaded), and append the units of `side_network` to the pipeline's."""
        self.register_module(side_network.name, model)
        self.side_networks = (*self.side_networks, side_network)
        self.units = [*self.units, *side_network.units]

    def add_unit(self, unit: PipelineUnit, columns: Sequence[str]) -> None:
        """Append `unit` to those of the pipeline; it reads the dataset columns `columns`, which rows may lack."""
        self.units = [*self.units, unit]
        self.further_columns = (*self.further_columns, *columns)

    def row_inputs(self, rows: Sequence[Inputs], extra_inputs: Sequence[str] = ()) -> tuple[Inputs, Inputs, Inputs]:
        """Return (shared, posi, nega) from dataset rows: inputs of the family, and a list per further column."""
        columns = [name for side_network in self.side_networks for name in side_network.columns]
        columns += self.further_columns
        own = [name for name in extra_inputs if name not in columns]
        shared, posi, nega = self.inputs_from_rows(rows, own)
        return {**shared, **{name: [row.get(name) for row in rows] for name in columns}}, posi, nega

    def decode_latents(self, latents: Tensor) -> list[Any]:
        """Decode clean latents into a list of images or clips; every family implements it."""
        raise NotImplementedError(f"{type(self).__name__} has no decode_latents()")

    @property
    def tokenizer(self) -> Any:
        """The reader "tokenizer", or None if the model has none."""
        return self.reader("tokenizer") if "tokenizer" in self.readers else None

    def reader(self, name: str) -> Any:
        """Return the tokenizer or processor `name`, loading it on first use; raise DsctlError if there is none."""
        return self.readers.get(name)

    def has(self, name: str) -> bool:
        """Return whether the model has the component `name`, loaded or not."""
        return self.family.component(name).name in self.parts.components

    @property
    def in_iteration_models(self) -> tuple[str, ...]:
        """The names of the components that `model_fn` runs: the denoisers, and those in `beside_the_denoiser`."""
        return (*(denoiser.name for denoiser in self.parts.denoisers), *self.beside_the_denoiser)

    def iteration_modules(self) -> dict[str, nn.Module]:
        """Return the loaded components that `model_fn` runs; raise DsctlError if no denoiser is loaded."""
        if not self.denoiser_modules():
            self.component(self.parts.denoisers[0].name)
        return {name: model for name, model in self.components.items() if name in self.in_iteration_models}

    def denoiser_modules(self) -> list[nn.Module]:
        """Return the loaded denoisers."""
        return [self.components[each.name] for each in self.parts.denoisers if each.name in self.components]

    def models_of(self, unit: PipelineUnit) -> tuple[str, ...]:
        """Return the names of the components that `unit` uses, without optional ones that this model lacks."""
        absent = {component.name for component in self.family.components} - set(self.parts.components)
        return tuple(name for name in unit.onload_model_names if name not in absent)

    @property
    def components(self) -> dict[str, nn.Module]:
        """The loaded components by name."""
        models = {name: getattr(self, name) for name in self.component_names}
        return {name: model for name, model in models.items() if model is not None}

    @property
    def component_names(self) -> tuple[str, ...]:
        """The names of all components, loaded or not: those of the family, then those of side networks."""
        return (*(each.name for each in self.family.components), *(each.name for each in self.side_networks))

    def component(self, name: str) -> Any:
        """Return the component `name`; raise DsctlError if it is not loaded."""
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
        """Move the components in `names` to `self.device`, unless they are there already, and make room for them."""
        self.placement.make_room(self, names)
        for name in names:
            if any(parameter.device != self.device for parameter in self.component(name).parameters()):
                self.placement.bring(self, name)

    def check_size(self, height: int, width: int, frames: int = 1) -> None:
        """Raise an error for a size in pixels or a number of frames that the model does not support.

        The hint has the nearest supported value.
        """
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
        """Return the number of image tokens of a sample, which determines the shift of its schedule.

        `height` and `width` are in pixels.
        """
        return (height // self.parts.division_factor) * (width // self.parts.division_factor)

    def preprocess_image(self, image: Image.Image | list[Image.Image]) -> Tensor:
        """Return an image as a tensor (1, 3, H, W) float32 in [-1, 1]; transparent pixels become white.

        A list of B images of one size, as a batch has, is (B, 3, H, W).
        """
        return torch.cat([to_pixels(each) for each in (image if isinstance(image, list) else [image])])

    def vae_output_to_image(self, images: Tensor) -> list[Image.Image]:
        """Return `images` (B, 3, H, W) in [-1, 1] as PIL images, each value rounded to the nearest of 256 levels."""
        return to_images(images)

    def run_units(self, shared: Inputs, posi: Inputs, nega: Inputs) -> tuple[Inputs, Inputs, Inputs]:
        """Run all units in order and return the three dicts with their outputs added."""
        for unit in self.units:
            shared, posi, nega = self.unit_runner(unit, self, shared, posi, nega)
        return shared, posi, nega

    @contextmanager
    def more_units(self, units: Sequence[PipelineUnit]) -> Iterator[None]:
        """Append `units` to the units of the pipeline inside the `with` block."""
        before = self.units
        self.units = [*before, *units]
        try:
            yield
        finally:
            self.units = before

    def denoiser_of(self, timestep: Tensor) -> str:
        """Return the name of the denoiser for `timestep` (B,) or ().

        Raises DsctlError when the samples of a batch are at noise levels of different denoisers.
        """
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
        """Return the velocity that the model predicts, float32 with the shape of `latents`.

        `model_fn` receives the component `denoiser` (None: the denoiser for `timestep`) as `dit`, the other components
        and those of `inputs` that its signature names. An AppliedLora in `inputs["lora"]` is applied during this call
        only.
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
        """Return the entries of `available` that are parameters of `model_fn`; raise DsctlError if one is missing."""
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
        """Combine the velocities for prompt and negative prompt (classifier-free guidance, arXiv:2207.12598)."""
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
        """Denoise `shared["latents"]` along the noise levels of the scheduler and return the clean latents.

        Where `shared["latents_mask"]` is 0 the result is `shared["input_latents"]`. Each noise level is handled by the
        denoiser of its range, with its own guidance scale; only this denoiser is on the device at that time.

        Args:
            shared: Inputs of `model_fn` that do not depend on the prompt, with `latents` to start from.
            posi: Inputs of `model_fn` for the prompt.
            nega: Inputs of `model_fn` for the negative prompt; used where the guidance scale is not 1.
            cfg_scale: Guidance scale, one for all denoisers or one for each.
            progress_bar_cmd: Wraps the timesteps, as `tqdm` does.
            scheduler: Noise levels (None: the scheduler of the pipeline).
            run_step: Called as `run_step(step, latents, timestep)` for each step.
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
