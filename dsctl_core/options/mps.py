"""Say which options an Apple GPU does not take: what was never computed there is refused, not tried."""

from __future__ import annotations

from collections.abc import Mapping

from dsctl_core.errors import UsageError

MPS = "mps"


def refuse_on_mps(device: str | None, given: Mapping[str, object], *, precisions: Mapping[str, str | None]) -> None:
    """Raise a UsageError for what `--device mps` cannot do; do nothing for another `device`.

    Args:
        device: The value of --device.
        given: What is given for each flag that needs another device.
        precisions: What is given for each flag of a precision: on an Apple GPU all is computed in float32.
    """
    if device != MPS:
        return
    for flag, precision in precisions.items():
        if precision not in (None, "no", "float32"):
            raise UsageError(
                f"--device mps computes in float32, and {flag} {precision} is given", hint=f"leave {flag} out"
            )
    for flag, value in given.items():
        if value:
            raise UsageError(
                f"{flag} is given with --device mps, and works on CPUs and NVIDIA GPUs alone",
                hint=f"leave {flag} out",
            )
