"""Write a trained template as a folder that stands for itself, proven to do what the training's does.

The trained weights go over those that the template had: whatever was trained wins, and what was not stays.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dsctl_core.checkpoint.model_config import ModelConfig
from dsctl_core.errors import DsctlError
from dsctl_core.files.atomic import prepare_folder, sync_folder, write_error, write_text
from dsctl_core.files.safetensors import PICKLE_SUFFIXES, read_safetensors, write_safetensors
from dsctl_core.hub.upload import SECRET_NAMES
from dsctl_core.pipeline import BasePipeline
from dsctl_core.template.card import CARD, card_text, public_name
from dsctl_core.template.check import input_names
from dsctl_core.template.model import Template, load_template, tensors_in
from dsctl_core.template.rewrite import with_weights
from dsctl_core.template.source import CODE
from dsctl_core.template.trust import Trust
from dsctl_core.version import __version__

LARGEST_FILE = 5_000_000_000  # bytes of tensors
EXAMPLE = "template_inputs"  # in the header: what it was given when it was packed, as JSON
KEPT = ("base_model", "family", "steps", "dataset", "base_weights")  # of what the training's file says
CACHES = ("__pycache__",)
COMPILED = (".pyc", ".pyo")


@dataclass(frozen=True)
class Packed:
    """What was written."""

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
    largest_file: int = LARGEST_FILE,
) -> Packed:
    """Write `trained`, whose weights are in place, to the new folder `output`; whole, or not at all.

    `example` are inputs that the packed folder and the trained weights are both run on. No file gets more bytes of
    tensors than `largest_file`, unless a single tensor has.
    """
    folder = trained.contract.folder
    refuse_existing(output)
    if output.resolve().is_relative_to(folder.resolve()):
        raise DsctlError(f"{output} is inside of {folder}, which is packed", hint="give an --output elsewhere")
    copied = files_to_copy(folder, without=(*trained.contract.weights, checkpoint))
    shards = in_shards(trained.model.state_dict(), largest_file)
    if not shards:
        raise DsctlError(f"{folder} has no weights to pack", hint="pack a template that was trained")
    code = trained.contract.code
    names = list(shards)
    content = code.read_bytes()
    if hashlib.sha256(content).hexdigest() != trained.contract.digest:
        raise DsctlError(f"{code} was changed while it was packed", hint="run it again")
    source = with_weights(code, content, names[0] if len(names) == 1 else names)
    about = _about(checkpoint, trained, example)
    temporary = output.with_name(f".{output.name}.{uuid.uuid4().hex[:8]}.tmp")
    made = [path for path in output.parents if not path.exists()]
    prepare_folder(output.parent)
    try:
        _copy(folder, copied, temporary)
        (temporary / CODE).write_bytes(source)
        for name, tensors in shards.items():
            write_safetensors(temporary / name, tensors, about)
        if not (temporary / CARD).exists():
            inputs = input_names(trained)
            text = card_text(output.name, {**about, "license": license_name}, inputs, example)
            write_text(temporary / CARD, text)
        prove(trained, temporary, pipe, example)
        _forget_caches(temporary)
        temporary.rename(output)
        sync_folder(output.parent)
    except OSError as error:
        raise write_error(output, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if not output.exists():
            for path in made:
                if path.is_dir() and not any(path.iterdir()):
                    path.rmdir()
    files = sorted(each for each in output.rglob("*") if each.is_file())
    parameters = sum(each.numel() for each in trained.model.state_dict().values())
    return Packed(
        output, [f.relative_to(output).as_posix() for f in files], parameters, sum(f.stat().st_size for f in files)
    )


def refuse_existing(output: Path) -> None:
    """Raise a DsctlError if there is something at `output`."""
    if output.exists() or output.is_symlink():
        raise DsctlError(f"{output} is there already", hint="give another --output, or remove it")


def files_to_copy(folder: Path, without: Sequence[Path] = ()) -> list[Path]:
    """Return the files that belong to the template in `folder`, relative to it.

    Left out: what is hidden, caches, its code, and the files `without`. A secret, a pickle, and a link that leads to
    a folder or out of it are errors: packing is for giving away.
    """
    left_out = {each.resolve() for each in (*without, folder / CODE)}
    found = []
    for root, names, files in os.walk(folder):
        names[:] = sorted(name for name in names if not name.startswith(".") and name not in CACHES)
        links = [Path(root, name) for name in names if Path(root, name).is_symlink()]
        if links:
            raise DsctlError(f"{links[0]} is a link to a folder", hint="put the folder itself there")
        for name in sorted(files):
            file = Path(root, name)
            if SECRET_NAMES.match(name) and not name.startswith("."):
                raise DsctlError(f"{file} is a file for secrets", hint="move it out of the folder")
            if name.startswith(".") or name.endswith(COMPILED) or file.resolve() in left_out:
                continue
            if not file.resolve().is_relative_to(folder.resolve()):
                raise DsctlError(f"{file} is a link to a place outside {folder}", hint="put the file itself there")
            if file.suffix.lower() in PICKLE_SUFFIXES:
                raise DsctlError(
                    f"{file} is a pickle, which can run code when it is opened",
                    hint="save it as safetensors, or move it out of the folder",
                )
            if not file.is_file():
                raise DsctlError(f"{file} leads nowhere", hint="remove it, or put the file there")
            found.append(file.relative_to(folder))
    return found


def in_shards(tensors: Mapping[str, Tensor], largest: int) -> dict[str, dict[str, Tensor]]:
    """Return the tensors by the file that each goes into: model.safetensors, or model-0000i-of-0000n.safetensors.

    Each is copied, for two names of one tensor cannot stand in a file.
    """
    parts: list[dict[str, Tensor]] = []
    room = 0
    for name in sorted(tensors):
        size = tensors[name].numel() * tensors[name].element_size()
        if not parts or size > room:
            parts.append({})
            room = largest
        parts[-1][name] = tensors[name].detach().clone()
        room -= size
    if len(parts) == 1:
        return {"model.safetensors": parts[0]}
    return {f"model-{number:05}-of-{len(parts):05}.safetensors": part for number, part in enumerate(parts, start=1)}


@torch.no_grad()
def prove(trained: Template, packed: Path, pipe: BasePipeline, example: Mapping[str, Any]) -> None:
    """Raise a DsctlError unless the template in the folder `packed` has the weights and the outputs of `trained`.

    Its code was agreed to already: what was changed in it is the names of its weight files.
    """
    again = load_template(ModelConfig(path=packed), Trust(given=True))
    wanted, found = trained.model.state_dict(), again.model.state_dict()
    for name in wanted:
        if not torch.equal(wanted[name], found[name]):
            raise DsctlError(
                f"packed, {name} has other values than in the checkpoint", hint="check what model.py does with it"
            )
    first, second = (_outputs(each, pipe, example) for each in (trained, again))
    # An output of NaN is refused before this, so equal means equal.
    if _places(first) != _places(second) or not all(map(torch.equal, tensors_in(first), tensors_in(second))):
        raise DsctlError(
            f"packed, the template {trained.name} returns something else than with the checkpoint",
            hint="check that its code draws no random numbers, and reads no weights of its own",
        )


def _outputs(template: Template, pipe: BasePipeline, example: Mapping[str, Any]) -> dict[str, Any]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return template.forward(pipe, template.process_inputs(pipe, example))


def _places(value: Any) -> Any:
    """Return the nest `value` with the shapes of its tensors in their places."""
    if isinstance(value, Tensor):
        return tuple(value.shape)
    if isinstance(value, Mapping):
        return {name: _places(each) for name, each in value.items()}
    return [_places(each) for each in value] if isinstance(value, list | tuple) else value


def _about(checkpoint: Path, trained: Template, example: Mapping[str, Any]) -> dict[str, str]:
    """Return the header of the weights; nothing in it says where on this machine anything was."""
    _, said = read_safetensors(checkpoint)
    about = {name: said[name] for name in KEPT if name in said}
    base = public_name(about.get("base_model"))
    if base is not None:
        about["base_model"] = base
    about |= {"kind": "template", "dsctl_version": __version__, "template_class": trained.contract.model.__name__}
    return {**about, EXAMPLE: json.dumps(dict(example))}


def _copy(folder: Path, files: Sequence[Path], target: Path) -> None:
    target.mkdir()
    for file in files:
        (target / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / file, target / file)


def _forget_caches(folder: Path) -> None:
    """Remove what running the code has left beside it."""
    for name in CACHES:
        for each in list(folder.rglob(name)):
            shutil.rmtree(each)
