"""Format counts, and numbers of bytes and seconds, for display."""

from __future__ import annotations


def counted(number: int, one: str, many: str | None = None) -> str:
    """Return a count and what is counted: "1 file", "2 files"; `many` is the plural of `one`, by default with an s."""
    return f"{number} {one if number == 1 else many or f'{one}s'}"


def readable_bytes(count: float) -> str:
    """Return a number of bytes with three digits and an SI unit, "12.3 kB" or "5.67 GB": 1 GB is 10^9 bytes."""
    if count < 999.5:
        return f"{count:.0f} B"
    for unit in ("kB", "MB", "GB"):
        count /= 1000
        if count < 999.5:
            return f"{count:.3g} {unit}"
    return f"{count / 1000:.3g} TB"


def readable_duration(seconds: float) -> str:
    """Return seconds as 0:09, 12:34 or 1:02:03; what is less than a second as 0.42 s."""
    if 0 < seconds < 1:
        return f"{seconds:.2g} s"
    minutes, rest = divmod(max(round(seconds), 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
