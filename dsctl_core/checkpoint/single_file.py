"""Load weight files without a config.json of diffusers, identified by tensor names, in any layout diffusers converts.

ComfyUI's files have a prefix in front of every tensor name, and original layouts have other names, which diffusers
converts to its own. The sizes are those of a published model.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsctl_core.checkpoint.identify import weight_files
from dsctl_core.checkpoint.quantized import is_scale, scaled_back
from dsctl_core.checkpoint.stream import tensor_shapes
from dsctl_core.errors import DsctlError
from dsctl_core.family import Component, Family
from dsctl_core.files.json import decode_json
from dsctl_core.files.safetensors import read_safetensors

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

PREFIXES = ("model.diffusion_model.", "diffusion_model.")
NEAREST = 3  # number of components that an error names
# Names of attention modules of language models in transformers: decoders and CLIP; T5.
OF_TEXT = re.compile(r"(?:^|\.)(?:layers\.\d+\.self_attn\.q_proj|block\.\d+\.layer\.0\.SelfAttention\.q)\.")


@dataclass(frozen=True)
class Published:
    """What a published size of a component says of its files: its config, and the shapes of its tensors by name."""

    config: Any
    shapes: Mapping[str, tuple[int, ...]]
    patterns: frozenset[str]  # the names, with N for each number


def identify_single_file(families: Iterable[Family], path: Path) -> tuple[Family, Component]:
    """Return the family and the component with the tensor names in `path`, regardless of the number of layers.

    Raises DsctlError for a file in another format or quantized by another tool, which it names, and for an unknown
    one, with the most similar components in the message.
    """
    stored = _stored(*weight_files(path))
    scores: list[tuple[float, str]] = []
    for family in families:
        for component, score in _scores(family, stored):
            if score == 1:
                return family, component
            scores.append((score, f"{component.name} of {family.name} ({score:.0%} of the names)"))
    if any(OF_TEXT.search(name) for name in stored):
        raise DsctlError(
            f"{path} is a text encoder by the names of its tensors, but has no config.json beside it to say which",
            hint="name the text encoder's folder instead, which has its config.json, as in --model-paths "
            "'[\"MODEL/text_encoder\"]', and its tokenizer with --tokenizer-path",
        )
    nearest = ", ".join(text for _, text in sorted(scores, reverse=True)[:NEAREST])
    raise DsctlError(
        f"{path} is no component that is known by its tensors, and has no config.json beside it",
        hint=f"put the config.json that it was published with beside it; nearest: {nearest}",
    )


def single_file_owners(families: Iterable[Family], path: Path) -> list[Family]:
    """Return all families with a component that has the tensor names in `path`; families can share a VAE."""
    stored = _stored(path)
    return [family for family in families if any(score == 1 for _, score in _scores(family, stored))]


def _scores(family: Family, stored: Mapping[str, Tensor]) -> Iterator[tuple[Component, float]]:
    """Yield each published component of `family`, and which share of the tensor names `stored` is that of it."""
    for component in family.components:
        if component.name in family.published:
            yield (
                component,
                max(
                    _likeness(published.patterns, _patterns(layout))
                    for published in _all_published(family, component)
                    for layout in _layouts(component, published, stored)
                ),
            )


def published_config(family: Family, component: Component, path: Path) -> dict[str, Any]:
    """Return the published config of `component` whose tensors fit those of `path`, a file or a folder, best."""
    stored = _stored(*weight_files(path))

    def fitting(config: Mapping[str, Any]) -> tuple[int, int]:
        published = _published(component, config)
        return max(_fitting(published, layout) for layout in _layouts(component, published, stored))

    return max(family.all_sizes(component.name), key=fitting)


def _stored(*paths: Path) -> dict[str, Tensor]:
    """Return tensors on the meta device with the names and shapes of those in the files `paths`."""
    import torch

    with torch.device("meta"):
        shapes = [shape for path in paths for shape in tensor_shapes(path).items()]
        return {name: torch.empty(shape) for name, shape in shapes if not is_scale(name)}


def load_single_file(family: Family, component: Component, path: Path, dtype: torch.dtype) -> nn.Module:
    """Load a component of a published size from `path`, in `dtype`, frozen and in evaluation mode.

    `path` is a file, or the folder of the original release. Raises DsctlError unless it holds exactly the tensors of
    the model.
    """
    from dsctl_core.memory.dtypes import cast_weights, declare_float32_parts

    tensors: dict[str, Tensor] = {}
    for file in weight_files(path):
        tensors |= scaled_back(read_safetensors(file)[0], dtype)
    candidates = [
        (config, published, layout)
        for config, published in zip(family.all_sizes(component.name), _all_published(family, component), strict=True)
        for layout in _layouts(component, published, tensors)
    ]
    config, published, state = max(candidates, key=lambda each: _fitting(each[1], each[2]))
    wanted = published.shapes
    for name in sorted(wanted.keys() ^ state.keys()):
        verb = "lacks" if name in wanted else "has, beyond the published model,"
        raise DsctlError(f"{path} {verb} {name}", hint="put the config.json that it was published with beside it")
    for name, shape in wanted.items():
        if tuple(state[name].shape) != shape:
            raise DsctlError(
                f"{path}: {name} is {tuple(state[name].shape)}, but {shape} in the published model",
                hint="put the config.json that it was published with beside it",
            )
    model = _empty(component.library, component.class_name, config)
    model.load_state_dict(state, strict=True, assign=True)
    declare_float32_parts(model, component.float32_parts)
    return cast_weights(model, dtype).eval().requires_grad_(False)


def _fitting(published: Published, state: Mapping[str, Tensor]) -> tuple[int, int]:
    """Return how many tensors of `state` match in name and shape, and minus the number of unmatched names."""
    wanted = published.shapes
    same = sum(wanted.get(name) == tuple(tensor.shape) for name, tensor in state.items())
    return same, -len(wanted.keys() ^ state.keys())


def _empty(library: str, class_name: str, config: Mapping[str, Any]) -> Any:
    """Build a network of `library` with the sizes in `config` on the meta device, without memory for its weights."""
    from accelerate import init_empty_weights

    with init_empty_weights():
        return getattr(importlib.import_module(library), class_name)(**config)


def _all_published(family: Family, component: Component) -> list[Published]:
    return [_published(component, config) for config in family.all_sizes(component.name)]


def _published(component: Component, config: Mapping[str, Any]) -> Published:
    return _read_once(component.library, component.class_name, json.dumps(config, sort_keys=True))


@functools.cache
def _read_once(library: str, class_name: str, config: str) -> Published:
    """Describe a class of `library` with the sizes in `config`, in JSON. To build it takes up to half a second."""
    model = _empty(library, class_name, decode_json(config))
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    return Published(model.config, shapes, frozenset(_patterns(shapes)))


def _layouts(component: Component, published: Published, tensors: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """Return `tensors` with the names that they may have in `published`: without prefix, and converted by diffusers."""
    plain = dict(tensors)
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in plain):
            plain = {name.removeprefix(prefix): tensor for name, tensor in plain.items()}
            break
    layouts = [plain]
    convert = conversion_of(component.single_file_as or component.class_name)
    if convert is not None:
        # The conversion fails for files that are not in the layout that it expects.
        with contextlib.suppress(KeyError, ValueError, IndexError, RuntimeError):
            renamed = {_renamed(name, component.single_file_renames): tensor for name, tensor in plain.items()}
            needs_config = "config" in inspect.signature(convert).parameters
            converted = convert(checkpoint=dict(renamed), **({"config": published.config} if needs_config else {}))
            # Tensors that the conversion of a similar class does not know already have the right name.
            known = published.shapes.keys() - converted.keys()
            layouts.append(converted | {name: renamed[name] for name in known & renamed.keys()})
    return layouts


def _renamed(name: str, renames: Mapping[str, str]) -> str:
    """Return `name` with its prefix replaced as in `renames`, or unchanged."""
    found = next((old for old in renames if name.startswith(old)), None)
    return name if found is None else renames[found] + name.removeprefix(found)


def conversion_of(class_name: str) -> Any:
    """Return the function of diffusers that converts the tensors of single files of a class, or None."""
    from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES

    known: dict[str, Any] = SINGLE_FILE_LOADABLE_CLASSES
    entry = known.get(class_name)
    return None if entry is None else entry["checkpoint_mapping_fn"]


def _patterns(names: Iterable[str]) -> set[str]:
    return {re.sub(r"(?<=\.)\d+(?=\.|$)", "N", name) for name in names}


def _likeness(wanted: Set[str], given: Set[str]) -> float:
    return len(wanted & given) / max(len(wanted | given), 1)
