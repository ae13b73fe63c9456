"""Write and read the metadata in the header of a LoRA file: our own keys and those of ModelSpec.

Model managers and user interfaces read ModelSpec (https://github.com/Stability-AI/ModelSpec).
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping

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
