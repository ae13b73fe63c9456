"""Pack a trained template: write its code and all its weights to a new folder, and verify it.

Trained weights replace those of the template; weights that were not trained are kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dsctl_core.checkpoint.model_config import ModelConfig
from dsctl_core.errors import DsctlError
from dsctl_core.files.atomic import atomic_folder, prepare_folder, unclaim, write_text
from dsctl_core.files.foreign import is_pickle
from dsctl_core.files.ownership import require_new
from dsctl_core.files.safetensors import read_safetensors, write_safetensors
from dsctl_core.hub.upload import SECRET_NAMES
from dsctl_core.pipeline import BasePipeline
from dsctl_core.template.card import CARD, card_text, public_name
from dsctl_core.template.check import input_names
from dsctl_core.template.model import Template, load_template, tensors_in
from dsctl_core.template.rewrite import with_weights
from dsctl_core.template.source import CODE
from dsctl_core.template.trust import Trust
from dsctl_core.version import __version__

MAX_SHARD_BYTES = 5_000_000_000  # bytes of tensors in a file
EXAMPLE = "template_inputs"  # key of the header: the inputs of the verification, as JSON
COPIED_METADATA = ("base_model", "family", "steps", "dataset", "base_weights")  # keys of the header of the checkpoint
CACHES = ("__pycache__",)
COMPILED = (".pyc", ".pyo")


@dataclass(frozen=True)
class Packed:
    """The result of packing: the folder, its files, and the total numbers of parameters and bytes."""

    output: Path
    files: list[str]
    parameters: int
    bytes: int


def write_pack(
    trained: Template,
    checkpoint: Path,
    output: Path,
    pipe: BasePipeline,
    example: Mapping[str, Any],
    *,
    license_name: str = "unknown",
    largest_file: int = MAX_SHARD_BYTES,
) -> Packed:
    """Write the template `trained` to the new folder `output`, completely or not at all.

    Args:
        trained: The template with its trained weights.
        checkpoint: The file of the trained weights; its metadata is copied.
        output: The new folder.
        pipe: The base model, with which the packed template is verified.
        example: The inputs of the verification; the model card has them as an example.
        license_name: The license in the model card.
        largest_file: The most bytes of tensors in a file; a larger tensor gets a file of its own.

    Raises `DsctlError` if the folder exists, if files of the template cannot be copied safely, and if the packed
    template does not equal `trained`.
    """
    folder = trained.contract.folder
    require_new(output, "--output")
    if output.resolve().is_relative_to(folder.resolve()):
        raise DsctlError(f"{output} is inside {folder}, the folder to pack", hint="use an --output outside the folder")
    copied = files_to_copy(folder, without=(*trained.contract.weights, checkpoint))
    shards = split_into_shards(trained.model.state_dict(), largest_file)
    if not shards:
        raise DsctlError(f"{folder} has no weights to pack", hint="pack a template that was trained")
    code = trained.contract.code
    names = list(shards)
    content = code.read_bytes()
    if hashlib.sha256(content).hexdigest() != trained.contract.digest:
        raise DsctlError(f"{code} has changed since it was loaded", hint="run the command again")
    source = with_weights(code, content, names[0] if len(names) == 1 else names)
    metadata = _metadata(checkpoint, trained, example)
    new_parents = [path for path in output.parents if not path.exists()]
    prepare_folder(output.parent)
    try:
        with atomic_folder(output) as temporary:
            _copy(folder, copied, temporary)
            (temporary / CODE).write_bytes(source)
            for name, tensors in shards.items():
                write_safetensors(temporary / name, tensors, metadata)
            if not (temporary / CARD).exists():
                inputs = input_names(trained)
                text = card_text(output.name, {**metadata, "license": license_name}, inputs, example)
                write_text(temporary / CARD, text)
            verify(trained, temporary, pipe, example)
            _remove_caches(temporary)
    except BaseException:
        unclaim(new_parents)
        raise
    files = sorted(each for each in output.rglob("*") if each.is_file())
    parameters = sum(each.numel() for each in trained.model.state_dict().values())
    return Packed(
        output, [f.relative_to(output).as_posix() for f in files], parameters, sum(f.stat().st_size for f in files)
    )


def files_to_copy(folder: Path, without: Sequence[Path] = ()) -> list[Path]:
    """Return the files of the template in `folder` to copy, relative to it.

    Hidden files, caches, the code and the files `without` are left out. A packed template is meant to be published, so
    `DsctlError` is raised for a file of secrets, a pickle, a link to a folder, and a link out of the folder.
    """
    excluded = {each.resolve() for each in (*without, folder / CODE)}
    files_found = []
    for root, names, files in os.walk(folder):
        names[:] = sorted(name for name in names if not name.startswith(".") and name not in CACHES)
        links = [Path(root, name) for name in names if Path(root, name).is_symlink()]
        if links:
            raise DsctlError(f"{links[0]} is a link to a folder", hint="replace it by the folder")
        for name in sorted(files):
            file = Path(root, name)
            if SECRET_NAMES.match(name) and not name.startswith("."):
                raise DsctlError(f"{file} has the name of a file with secrets", hint="move it out of the folder")
            if name.startswith(".") or name.endswith(COMPILED) or file.resolve() in excluded:
                continue
            if not file.resolve().is_relative_to(folder.resolve()):
                raise DsctlError(f"{file} is a link out of {folder}", hint="replace it by the file")
            if is_pickle(file):
                raise DsctlError(
                    f"{file} is a pickle, which can run code when it is opened",
                    hint="save it as safetensors, or move it out of the folder",
                )
            if not file.is_file():
                raise DsctlError(f"{file} is a broken link", hint="remove it, or replace it by the file")
            files_found.append(file.relative_to(folder))
    return files_found


def split_into_shards(tensors: Mapping[str, Tensor], largest: int) -> dict[str, dict[str, Tensor]]:
    """Return the tensors of each shard: model.safetensors, or model-0000i-of-0000n.safetensors.

    A shard has at most `largest` bytes, unless it is a single tensor. Tensors are copied, because safetensors refuses
    two names that share memory.
    """
    shards: list[dict[str, Tensor]] = []
    remaining = 0
    for name in sorted(tensors):
        size = tensors[name].numel() * tensors[name].element_size()
        if not shards or size > remaining:
            shards.append({})
            remaining = largest
        shards[-1][name] = tensors[name].detach().clone()
        remaining -= size
    if len(shards) == 1:
        return {"model.safetensors": shards[0]}
    return {f"model-{number:05}-of-{len(shards):05}.safetensors": shard for number, shard in enumerate(shards, start=1)}


@torch.no_grad()
def verify(trained: Template, packed: Path, pipe: BasePipeline, example: Mapping[str, Any]) -> None:
    """Raise `DsctlError` unless the template in the folder `packed` has the weights and the outputs of `trained`.

    Its code is trusted already: it differs only in the names of its weight files.
    """
    reloaded = load_template(ModelConfig(path=packed), Trust(granted=True))
    expected, actual = trained.model.state_dict(), reloaded.model.state_dict()
    for name in expected:
        if not torch.equal(expected[name], actual[name]):
            raise DsctlError(
                f"after packing, {name} differs from the checkpoint", hint="check how model.py initializes it"
            )
    first, second = (_outputs(each, pipe, example) for each in (trained, reloaded))
    # `Template` refuses NaN, which would not be equal to itself.
    if _shapes(first) != _shapes(second) or not all(map(torch.equal, tensors_in(first), tensors_in(second))):
        raise DsctlError(
            f"after packing, the outputs of the template {trained.name} differ from those with the checkpoint",
            hint="check that its code uses no random numbers and loads no weights by itself",
        )


def _outputs(template: Template, pipe: BasePipeline, example: Mapping[str, Any]) -> dict[str, Any]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return template.forward(pipe, template.process_inputs(pipe, example))


def _shapes(value: Any) -> Any:
    """Return the nested `value` with each tensor replaced by its shape."""
    if isinstance(value, Tensor):
        return tuple(value.shape)
    if isinstance(value, Mapping):
        return {name: _shapes(each) for name, each in value.items()}
    return [_shapes(each) for each in value] if isinstance(value, list | tuple) else value


def _metadata(checkpoint: Path, trained: Template, example: Mapping[str, Any]) -> dict[str, str]:
    """Return the metadata of the packed weights. It has no paths of this machine."""
    _, header = read_safetensors(checkpoint)
    metadata = {name: header[name] for name in COPIED_METADATA if name in header}
    base = public_name(metadata.get("base_model"))
    if base is not None:
        metadata["base_model"] = base
    metadata |= {"kind": "template", "dsctl_version": __version__, "template_class": trained.contract.model.__name__}
    return {**metadata, EXAMPLE: json.dumps(dict(example))}


def _copy(folder: Path, files: Sequence[Path], target: Path) -> None:
    for file in files:
        (target / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / file, target / file)


def _remove_caches(folder: Path) -> None:
    """Remove the caches that Python wrote when it ran the code."""
    for name in CACHES:
        for each in list(folder.rglob(name)):
            shutil.rmtree(each)
