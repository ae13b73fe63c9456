"""Save and restore the global random generators: Python's, numpy's, torch's and the GPU's."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def random_state(device: torch.device) -> dict[str, Any]:
    """Return the state of every generator, as values that dsctl_core.training.state.values can write."""
    kind, words, spare = random.getstate()
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "python": {"version": kind, "words": torch.tensor(words, dtype=torch.int64), "spare": spare},
        "numpy": {
            "name": str(name),
            "keys": torch.from_numpy(np.asarray(keys, dtype=np.int64)),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "gauss": float(gauss),
        },
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "mps": torch.mps.get_rng_state() if device.type == "mps" else None,
    }


def restore_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Restore the state of every generator; a GPU's is unchanged if `state` has none."""
    python, numpy = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(python["words"].tolist()), python["spare"]))
    keys = numpy["keys"].numpy().astype(np.uint32)
    np.random.set_state((numpy["name"], keys, numpy["position"], numpy["has_gauss"], numpy["gauss"]))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)
    if device.type == "mps" and state.get("mps") is not None:  # older states have none
        torch.mps.set_rng_state(state["mps"])
