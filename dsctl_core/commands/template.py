"""`dsctl template init`, `check`, `pack` and `upload`: a template from its first line to a hub."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict
from typing import Any

from dsctl_core.checkpoint.model_config import ModelConfig
from dsctl_core.commands.template_apart import check_apart
from dsctl_core.commands.upload import upload_files
from dsctl_core.errors import DsctlError
from dsctl_core.files.foreign import is_pickle
from dsctl_core.files.json import read_line
from dsctl_core.files.ownership import require_new
from dsctl_core.files.safetensors import file_metadata
from dsctl_core.hub.settings import download_source, model_base_path
from dsctl_core.hub.upload import files_to_upload
from dsctl_core.options.template import WEIGHTS as SAFETENSORS
from dsctl_core.options.template_tools import (
    TemplateCheckOptions,
    TemplateInitOptions,
    TemplatePackOptions,
    TemplateUploadOptions,
)
from dsctl_core.progress import Transfers
from dsctl_core.template.card import CARD, REQUIRED, infer_line
from dsctl_core.template.check import input_names, open_model
from dsctl_core.template.contract import read_contract
from dsctl_core.template.model import Template, load_template
from dsctl_core.template.pack import EXAMPLE, Packed, write_pack
from dsctl_core.template.skeleton import write_skeleton
from dsctl_core.template.source import folder_of
from dsctl_core.template.trust import Trust

PACK = "write the folder with `dsctl template pack`"


def init(options: TemplateInitOptions) -> dict[str, Any]:
    """Write a template that works into a new folder; return what was written, and the command that checks it."""
    started = write_skeleton(options.name, options.kind, options.model)
    check_it = ["dsctl", "template", "check", str(started.folder), "--trust-template"]
    check_it += ["--model", options.model] if options.given("model") else []
    check_it += ["--template-inputs", json.dumps(started.example)]
    return {**asdict(started), "blocks": list(started.blocks), "check_it": shlex.join(check_it)}


def check(options: TemplateCheckOptions) -> dict[str, Any]:
    """Load the template, run it beside the model, and return what it does; see dsctl_core.template.check.describe.

    Its code runs in a process of its own, so that code which ends its process cannot end this one as if all were well.
    """
    return check_apart(options)


def pack(options: TemplatePackOptions) -> Packed:
    """Write a template and the weights of a training into a new folder, and prove that it does the same as they do."""
    trust = Trust(options.trust_template)
    require_new(options.output, "--output")
    contract = read_contract(folder_of(ModelConfig(path=options.folder)), trust)
    trained = load_template(contract, checkpoint=options.checkpoint)
    example = options.template_inputs.values
    trained.refuse_unread(example, "--template-inputs")
    pipe = open_model(options.model)
    return write_pack(trained, options.checkpoint, options.output, pipe, example, license_name=options.license)


def upload(options: TemplateUploadOptions, progress: Transfers | None = None) -> dict[str, Any]:
    """Check and upload a packed template; return what was done, and the commands with which somebody else tries it."""
    folder = folder_of(ModelConfig(path=options.path))
    files = files_to_upload(folder)
    for name, file in files:
        if is_pickle(file):
            raise DsctlError(
                f"{file} is a pickle, which can run code when it is opened",
                hint=f"save {name} as safetensors, or move it out of the folder",
            )
    if not any(name == CARD for name, _ in files):
        raise DsctlError(f"{folder} has no {CARD}, which tells others what it is", hint=PACK)
    template = load_template(ModelConfig(path=folder), Trust(options.trust_template))
    weights = template.contract.weights
    if not weights:
        raise DsctlError(f"{folder} has no weights of its own: it would start at random", hint=PACK)
    for file in weights:
        if file.suffix != SAFETENSORS:
            raise DsctlError(f"{file} is no .safetensors file", hint=PACK)
        if file.resolve() not in {each.resolve() for _, each in files}:
            raise DsctlError(f"{file} is hidden, and what is hidden is not uploaded", hint="give it another name")
    facts = upload_files(options, files, progress)
    return {**facts, "try_it": _to_try(options, template)}


def _to_try(options: TemplateUploadOptions, template: Template) -> list[str]:
    """Return the command that gets the template, and the one that draws with it."""
    at = "" if options.revision is None else f"@{options.revision}"
    get = ["dsctl", "download", f"{options.repo}{at}", "--source", download_source(options.target)]
    place = model_base_path() / f"{options.repo}{at.replace('/', '--')}"
    about = file_metadata(template.contract.weights[0])
    example = read_line(about.get(EXAMPLE, ""))
    if example is None:
        example = {name: "..." for name, default in input_names(template).items() if default == REQUIRED}
    return [shlex.join(get), infer_line(about.get("base_model"), str(place), example)]
