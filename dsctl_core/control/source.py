"""Load a control network, and add it to a pipeline."""

from __future__ import annotations

import importlib
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dsctl_core.checkpoint.model_config import ModelConfig
from dsctl_core.control.use import ControlUse
from dsctl_core.errors import DsctlError
from dsctl_core.family import ControlNet
from dsctl_core.files.digest import digest, weights_identity
from dsctl_core.files.json import decode_json, read_json
from dsctl_core.files.safetensors import file_metadata, read_safetensors
from dsctl_core.options.control import MODEL
from dsctl_core.side_network import SideNetwork

if TYPE_CHECKING:
    import torch
    from torch import nn

    from dsctl_core.pipeline import BasePipeline

CONFIG = "_config"  # after the name of the network, in the metadata of a trained file: its config, as JSON
Loading = Literal["absent", "empty", "loaded"]  # no network; one without the values of its weights; the whole network


@dataclass(frozen=True)
class ControlWeights:
    """The weight files of a control network, and its config, as far as it is stored beside or in them."""

    files: tuple[Path, ...]
    shapes: Mapping[str, tuple[int, ...]]
    config: Mapping[str, Any] | None

    @classmethod
    def at(cls, paths: Sequence[Path]) -> ControlWeights:
        """Read the headers of the files at `paths`, which are files or one folder with them.

        Raises DsctlError for a folder without weights, and for a file that is damaged or in another format.
        """
        from dsctl_core.checkpoint.identify import weight_files
        from dsctl_core.checkpoint.stream import tensor_shapes

        files = [file for path in paths for file in weight_files(path)]
        shapes: dict[str, tuple[int, ...]] = {}
        config: Mapping[str, Any] | None = None
        for file in files:
            about = file_metadata(file)
            stored = about.get(f"{about.get('component', MODEL)}{CONFIG}")
            shapes |= tensor_shapes(file)
            config = decode_json(stored.encode()) if stored is not None else config
        beside = files[0].parent / "config.json"
        if beside.is_file():
            config = read_json(beside)
        return cls(tuple(files), shapes, config if isinstance(config, Mapping) else None)

    def config_as(self, kind: ControlNet) -> dict[str, Any] | None:
        """Return the config of the network as one of `kind`, or None if it is none."""
        return kind.config_of(self.shapes, self.config, self._is_zero)

    def _is_zero(self, name: str) -> bool:
        """Return whether all numbers of a tensor are zero."""
        from safetensors import safe_open

        for file in self.files:
            with safe_open(file, framework="pt") as opened:
                if name in opened.keys():  # noqa: SIM118 (the file is no mapping)
                    return not bool(opened.get_tensor(name).any())
        raise KeyError(name)


@dataclass(frozen=True)
class ControlNetSource:
    """A control network of a run: its kind, the location of its weights (None: a new network), and its use.

    `columns` are the names of its inputs, and `seed` is that of a new network's weights.
    """

    name: str
    label: str  # the network as the user specified it
    kind: ControlNet
    config: Mapping[str, Any]
    weights: ModelConfig | None
    use: ControlUse
    seed: int = 0

    @property
    def columns(self) -> tuple[str, ...]:
        """The dataset columns that it reads."""
        return tuple(f"{column}{self.name.removeprefix(MODEL)}" for column in self.kind.columns)

    @property
    def pictures(self) -> tuple[str, ...]:
        """Those of `columns` that hold pictures: all."""
        return self.columns

    @property
    def identity(self) -> str:
        """A digest of its weights, or of all that the weights of a new network depend on."""
        if self.weights is None:
            return f"sha256:{digest([self.kind.name, dict(self.config), self.seed])}"
        try:
            return f"sha256:{weights_identity(self._weights().files)}"
        except DsctlError:  # not on the disk; loading raises an error if it is needed
            return f"sha256:{digest([self.kind.name, self.label])}"

    @property
    def on_disk(self) -> bool:
        """Whether its weights need no download."""
        return self.weights is None or self.weights.path is not None or self._found() is not None

    def without_downloads(self) -> ControlNetSource:
        """Return it limited to the disk: a missing file is an error instead of a download."""
        return self if self.weights is None else replace(self, weights=replace(self.weights, skip_download=True))

    def about(self) -> dict[str, str]:
        """Return the metadata for files that are trained with it."""
        label = str(Path(self.label).absolute()) if Path(self.label).exists() else self.label
        about = {"_class_name": self.kind.class_name, **self.config}
        return {self.name: label, f"{self.name}{CONFIG}": json.dumps(about)}

    def attach(self, pipe: BasePipeline, how: Loading = "loaded", dtype: torch.dtype | None = None) -> None:
        """Add the network to `pipe`, in `dtype` (None: that of the pipeline), frozen and on the pipe's device."""
        from dsctl_core.memory.dtypes import cast_weights

        network = None
        if how == "empty":
            network = cast_weights(empty_network(self.kind, self.config), dtype or pipe.torch_dtype)
            network = network.to_empty(device="cpu").eval().requires_grad_(False)
        elif how == "loaded":
            network = self._load(dtype or pipe.torch_dtype, pipe).to(pipe.device)
        pipe.attach_side_network(self.side_network(), network)

    def side_network(self) -> SideNetwork:
        """Return the description of the network for a pipeline."""
        module, _, function = self.kind.control.partition(":")
        made: SideNetwork = getattr(importlib.import_module(module), function)(self.name, self.columns, self.use)
        return made

    def _found(self) -> ControlWeights | None:
        assert self.weights is not None
        try:
            return ControlWeights.at(replace(self.weights, skip_download=True).resolve())
        except DsctlError:
            return None

    def _weights(self) -> ControlWeights:
        assert self.weights is not None, "a new network has no weights"
        return ControlWeights.at(self.weights.resolve())

    def _load(self, dtype: torch.dtype, pipe: BasePipeline) -> nn.Module:
        from dsctl_core.memory.dtypes import cast_weights

        if self.weights is None:
            network = new_network(self.kind, self.config, self.seed)
            if self.kind.starts_from is not None:
                prefixes = self.kind.starts_from(self.config)
                start_from(network, pipe.component(pipe.parts.denoisers[0].name), prefixes)
        else:
            network = load_network(self.kind, self._weights(), self.label)
        return cast_weights(network, dtype).eval().requires_grad_(False)


def network_class(kind: ControlNet) -> Any:
    """Import the class of the networks of `kind`."""
    return getattr(importlib.import_module(kind.library), kind.class_name)


def build(kind: ControlNet, config: Mapping[str, Any]) -> nn.Module:
    """Build a network of `kind`."""
    with warnings.catch_warnings():
        # diffusers warns of names of its own that its own classes use.
        warnings.filterwarnings("ignore", message=".*is deprecated and will be removed", category=FutureWarning)
        made: nn.Module = network_class(kind)(**config)
    return made


def new_network(kind: ControlNet, config: Mapping[str, Any], seed: int) -> nn.Module:
    """Build a network that changes nothing yet, with weights drawn from `seed`; no other random state is touched."""
    import torch

    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return build(kind, config)


def start_from(network: nn.Module, denoiser: nn.Module, prefixes: Mapping[str, str]) -> None:
    """Give `network` the weights that `denoiser` has in the same shapes under the same names.

    `prefixes` map the beginning of a name in the network to that in the denoiser; other weights stay as they are.
    """
    import torch

    theirs = denoiser.state_dict()
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            for own, other in prefixes.items():
                found = theirs.get(other + name.removeprefix(own)) if name.startswith(own) else None
                if found is not None and found.shape == tensor.shape:
                    tensor.copy_(found)


def empty_network(kind: ControlNet, config: Mapping[str, Any]) -> nn.Module:
    """Build a network on the meta device, without memory for its weights."""
    from accelerate import init_empty_weights

    with init_empty_weights():
        return build(kind, config)


def load_network(kind: ControlNet, weights: ControlWeights, label: str) -> nn.Module:
    """Load a network in the dtype of its file.

    Raises DsctlError unless the files hold exactly the tensors of the network, all of them finite numbers.
    """
    from dsctl_core.checkpoint.build import refused_by_library
    from dsctl_core.checkpoint.finite import refuse_unusable_weights

    cls, config = network_class(kind), weights.config_as(kind)
    if config is None:
        raise DsctlError(f"{label} is no {kind.name} control network", hint="restore the file from where it came")
    where = weights.files[0]
    with refused_by_library(where, cls):
        network = empty_network(kind, config)
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    unused = () if kind.leaves_out is None else kind.leaves_out(config)
    held = [name for name in weights.shapes if not name.startswith(unused)]
    for name in sorted(wanted.keys() ^ set(held)):
        verb = "lacks" if name in wanted else "has, beyond what the network has,"
        raise DsctlError(f"{label} {verb} {name}", hint="give the whole network, as it was saved")
    for name, shape in wanted.items():
        if weights.shapes[name] != shape:
            raise DsctlError(f"{label}: {name} is {weights.shapes[name]}, not {shape}", hint="give the whole network")
    state = {name: tensor for file in weights.files for name, tensor in read_safetensors(file)[0].items()}
    state = {name: state[name] for name in held}
    network.load_state_dict(state, strict=True, assign=True)
    refuse_unusable_weights(network, weights.files, where)
    return network
