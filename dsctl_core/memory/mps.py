"""Find out whether torch can compute on an Apple GPU, through Metal Performance Shaders (torch.backends.mps)."""

from __future__ import annotations

import torch

from dsctl_core.errors import UsageError


def has_mps() -> bool:
    """Return whether there is an Apple GPU that torch can compute on."""
    return bool(torch.backends.mps.is_available())


def require_mps() -> None:
    """Raise a UsageError, with the reason, if torch cannot compute on an Apple GPU."""
    if has_mps():
        return
    built = torch.backends.mps.is_built()
    reason = "this machine has no Apple GPU that it can use" if built else "this torch was built without it"
    raise UsageError(f"--device mps is asked for, but {reason}", hint="see dsctl doctor, or leave --device out")
