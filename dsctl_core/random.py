"""Derive seeds as a pure function of their purpose, so that results do not depend on the order of draws."""

from __future__ import annotations

import hashlib


def derive_seed(*parts: int | str) -> int:
    """Return a seed in [0, 2**63) that depends on every part and on their order.

    The same parts give the same seed on every machine and in every process (SHA-256, not Python's `hash`).
    """
    digest = hashlib.sha256("\x1f".join(f"{type(part).__name__}:{part}" for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
