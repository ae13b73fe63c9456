"""Select the linear layers of a model that get a LoRA: by name, module, regular expression, or all of the blocks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from dsctl_core.errors import DsctlError, UsageError, near_miss
from dsctl_core.memory.blocks import repeated_blocks

AUTO = "auto"
PLAIN = re.compile(r"[A-Za-z0-9_.]+")  # characters of module names; a target with others is a regular expression
MODULE = re.compile(r"[A-Za-z0-9_.*]+")  # characters of module names with wildcards, for targets that match no layer


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """Return the linear layers of `model` by name, with or without a LoRA."""
    return {
        name.replace(".base_layer", ""): module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and ".lora_" not in name
    }


def find_targets(model: nn.Module, targets: Sequence[str]) -> list[str]:
    """Return the names of the linear layers of `model` that match `targets`, in the order of the model.

    A target is one of

    - the name of a layer, or the end of it: "to_q", "attn.to_q";
    - a regular expression, recognized by a character that no name has; it must match a whole name;
    - "auto": all linear layers of the repeated blocks;
    - if none of these matches a layer: the name of a module, or the end of it, for all linear layers inside
      ("vace_blocks", "blocks.0"), also with wildcards for parts of the name ("vace_blocks.*.attn1").

    Raises DsctlError for a target that matches no layer, with the most similar name in the hint.
    """
    if not targets:
        raise DsctlError("no LoRA target modules were given", hint="name layers such as to_q,to_k,to_v")
    linear = list(linear_layers(model))
    found: set[str] = set()
    for target in targets:
        matched = {name for name in linear if _matches(model, target, name)}
        if not matched and MODULE.fullmatch(target):
            matched = {name for name in linear if _inside(target, name)}
        if not matched:
            raise _no_match(model, target, linear)
        found |= matched
    return [name for name in linear if name in found]


def exactly(names: Sequence[str]) -> str:
    """Return a regular expression with which peft selects exactly the layers `names`.

    With a list, peft would also select all layers with names that end in one of them.
    """
    return "|".join(re.escape(name) for name in names)


def _matches(model: nn.Module, target: str, name: str) -> bool:
    if target == AUTO:
        return any(name.startswith(f"{block}.") for block in repeated_blocks(model))
    if PLAIN.fullmatch(target):
        return name == target or name.endswith(f".{target}")
    try:
        return re.fullmatch(target, name) is not None
    except re.error as error:
        raise UsageError(
            f"LoRA target {target!r} is no regular expression: {error}",
            hint=r"write one such as .*\.attn\.to_[qkv], or the name of a layer",
        ) from error


def _inside(target: str, name: str) -> bool:
    """Return whether the layer `name` is inside a module with a name that is or ends in `target` (with wildcards)."""
    wanted, parts = target.split("."), name.split(".")
    return any(
        all(map(fnmatchcase, parts[start : start + len(wanted)], wanted))
        for start in range(len(parts) - len(wanted))  # without the last part, which is the layer itself
    )


def _no_match(model: nn.Module, target: str, linear: list[str]) -> DsctlError:
    kind = type(model).__name__
    if target == AUTO:
        return DsctlError(f"the {kind} has no linear layer in repeated blocks", hint="name the layers one by one")
    what = "LoRA target" if PLAIN.fullmatch(target) else "LoRA target (a regular expression)"
    guess = near_miss(target, sorted({tail for name in linear for tail in _tails(name)}))
    hint = f"layers are named like {', '.join(linear[-3:])}" if linear else "only linear layers can have one"
    return DsctlError(
        f"{what} {target!r} matches no linear layer of the {kind}", hint=f"did you mean {guess!r}?" if guess else hint
    )


def _tails(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[-n:]) for n in (1, 2, 3) if n <= len(parts)]
