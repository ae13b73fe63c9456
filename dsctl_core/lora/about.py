"""Write and read the metadata in the header of a LoRA file: our own keys and those of ModelSpec.

Model managers and user interfaces read ModelSpec (https://github.com/Stability-AI/ModelSpec).
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dsctl_core.lora.formats import Layers

SPEC = "modelspec."


def with_model_spec(about: Mapping[str, str], title: str, layers: Layers) -> dict[str, str]:
    """Return `about` with ModelSpec fields added, which are derived from it and from the values of `layers`."""
    fields = {
        "sai_model_spec": "1.0.1",
        "architecture": f"{about.get('family', 'unknown')}/lora",
        "implementation": "diffusers",
        "title": title,
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "hash_sha256": f"0x{layers_hash(layers)}",
    }
    if about.get("trigger_words"):
        fields["trigger_phrase"] = about["trigger_words"]
    if about.get("base_model"):
        fields["usage_hint"] = f"for {about['base_model']}"
    return {**about, **{SPEC + name: value for name, value in fields.items()}}


def layers_hash(layers: Layers) -> str:
    """Return the SHA-256 of the names and values of `layers`."""
    digest = hashlib.sha256()
    for name in sorted(layers):
        layer = layers[name]
        digest.update(f"{name} {layer.scale!r} {layer.shape}".encode())
        for tensor in (*layer.parts().values(), *(() if layer.magnitude is None else (layer.magnitude,))):
            digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def dataset_identity(rows: Sequence[Mapping[str, Any]], base_path: Path) -> str:
    """Return a hash of a dataset: of its rows, and of the size of each file that a cell names.

    File names are relative to `base_path`.
    """
    digest = hashlib.sha256(json.dumps([dict(row) for row in rows], sort_keys=True, default=str).encode())
    for row in rows:
        for value in row.values():
            file = base_path / value if isinstance(value, str) and len(value) < 1000 else None
            if file is not None and file.is_file():
                digest.update(f"{file.stat().st_size} ".encode())
    return digest.hexdigest()
