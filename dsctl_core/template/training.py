"""Train a template: load it once from the options, and attach it to every pipeline of the run."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dsctl_core.control.source import Loading
from dsctl_core.errors import UsageError, unknown_name
from dsctl_core.files.digest import digest
from dsctl_core.options.template import INPUTS, MODEL, TemplateSource
from dsctl_core.pipeline import BasePipeline
from dsctl_core.side_network import SideNetwork
from dsctl_core.template.model import Template, load_template
from dsctl_core.template.source import config_of
from dsctl_core.template.trust import Trust
from dsctl_core.template.units import template_units


@dataclass(frozen=True)
class TrainableTemplate:
    """A loaded template and the names of its modules to train ("" is the whole template)."""

    template: Template
    source: TemplateSource
    parts: tuple[str, ...]
    required: bool  # whether every row must have inputs for it
    identity: str  # hash of its code and of its frozen weights
    name: str = MODEL
    columns: tuple[str, ...] = (INPUTS,)
    pictures: tuple[str, ...] = ()
    on_disk: bool = True  # it is loaded already

    @property
    def label(self) -> str:
        """The template as the user specified it."""
        return str(self.source)

    def without_downloads(self) -> TrainableTemplate:
        """Return it unchanged: it is loaded already."""
        return self

    def attach(self, pipe: BasePipeline, how: Loading = "loaded", dtype: torch.dtype | None = None) -> None:
        """Attach the template to `pipe`, on its device: trained weights in float32, the others in the pipe's dtype.

        It is loaded already, and its units call it, so that `how` and `dtype` change nothing.
        """
        trained = {
            id(tensor)
            for part in self.parts
            for tensor in (*_module(self.template, part).parameters(), *_module(self.template, part).buffers())
        }
        model = self.template.model
        for module in model.modules():
            for tensors in (module._parameters, module._buffers):
                for tensor in tensors.values():
                    if tensor is not None and tensor.is_floating_point() and id(tensor) not in trained:
                        tensor.data = tensor.data.to(pipe.torch_dtype)
        units = template_units(self.template, pipe, required=self.required)
        pipe.attach_side_network(SideNetwork(self.name, units, self.columns), model.to(pipe.device))
        for part in self.parts:
            _module(self.template, part).requires_grad_(True)

    def about(self) -> dict[str, str]:
        """Return the metadata of the template in trained files and caches: its source and the hash of its code."""
        folder, file = Path(self.source.source), self.source.checkpoint
        absolute = replace(
            self.source,
            source=str(folder.absolute()) if folder.is_dir() else self.source.source,
            checkpoint=None if file is None else file.absolute(),
        )
        return {"template": str(absolute), "template_sha256": self.template.contract.digest}


def open_template(
    source: TemplateSource, trust: Trust, trainable: Sequence[str], *, required: bool
) -> TrainableTemplate:
    """Load the template to train.

    `trainable` are names such as "template_model" and "template_model.mlp". With `required` every row must have inputs
    for it. Raises `UsageError` for a module that does not exist or has no weights.
    """
    template = load_template(config_of(source.source), trust, checkpoint=source.checkpoint)
    parts = tuple(dict.fromkeys(name.partition(".")[2] for name in trainable if name.split(".")[0] == MODEL))
    known = dict(template.model.named_modules())
    for part in parts:
        if part not in known:
            raise unknown_name(f"module of {MODEL}", part, [name for name in known if name])
    if parts and not any(True for part in parts for _ in known[part].parameters()):
        raise UsageError(
            f"{source} has no weights to train", hint="add weights to its network, or train another component"
        )
    return TrainableTemplate(template, source, parts, required, _identity(template, parts))


def _identity(template: Template, parts: Sequence[str]) -> str:
    """Return a hash of the code of a template and of its frozen weights."""
    frozen = [
        [name, list(tensor.shape), _digest(tensor)]
        for name, tensor in sorted(template.model.state_dict().items())
        if not any(part == "" or name == part or name.startswith(f"{part}.") for part in parts)
    ]
    return f"sha256:{digest([template.contract.digest, frozen])}"


def _module(template: Template, part: str) -> nn.Module:
    return template.model.get_submodule(part)


def _digest(tensor: Any) -> str:
    flat = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    return hashlib.sha256(flat.numpy().tobytes()).hexdigest()
