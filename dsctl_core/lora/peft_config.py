"""Read the settings that peft writes for a LoRA: adapter_config.json, or what diffusers puts into the header."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from dsctl_core.errors import DsctlError
from dsctl_core.files.json import checked, parse_json, read_json

ADAPTER_FILE, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"


class PeftConfig(TypedDict, total=False):
    """The fields of a peft config that are read here; a field can also be null, which is as if it were not there."""

    lora_alpha: float
    alpha_pattern: dict[str, float]
    use_dora: bool
    use_rslora: bool


def read_peft_config(file: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return the peft config of a LoRA, from its adapter_config.json or from the header that diffusers writes."""
    beside, where = file.parent / ADAPTER_CONFIG, f"the lora_adapter_metadata in the header of {file}"
    if file.name == ADAPTER_FILE and beside.is_file():
        config, where = read_json(beside), str(beside)
    else:
        noted = checked(parse_json(metadata.get("lora_adapter_metadata", "{}"), where), dict[str, Any], where)
        config = {key.removeprefix("transformer."): value for key, value in noted.items()}
    checked({key: value for key, value in config.items() if value is not None}, PeftConfig, where)
    for name, plain in (("bias", "none"), ("modules_to_save", None), ("peft_type", "LORA")):
        if config.get(name, plain) not in (plain, [] if plain is None else plain):
            raise DsctlError(
                f"{file} is no plain LoRA: its settings have {name} = {config[name]!r}", hint="give a plain LoRA"
            )
    return config


def scale_function(path: Path, config: dict[str, Any]) -> Callable[[str, int], float]:
    """Return the function (layer, rank R) -> scale of a peft config: alpha / R, or with rsLoRA alpha / sqrt(R)."""

    patterns = {}
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        try:
            patterns[re.compile(rf"(?:.*\.)?(?:{pattern})$")] = value
        except (re.error, RecursionError) as error:
            raise DsctlError(
                f"{path}: its alpha_pattern has {pattern!r}, which is no regular expression: {error}",
                hint="download or copy it again",
            ) from error

    def scale(layer: str, rank: int) -> float:
        alpha = config.get("lora_alpha")
        found = (value for pattern, value in patterns.items() if pattern.match(layer))
        alpha = next(found, rank if alpha is None else alpha)
        return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)

    return scale
