"""The repeated blocks of a model: what most of its memory is in, and what can be treated one at a time."""

from __future__ import annotations

from torch import nn


def repeated_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """Return the blocks that `model` is a stack of, by name, in the order of their definition.

    They are the entries of its outermost module lists whose entries are all of one class. The lists that diffusers
    says are not (`_repeated_blocks` names the classes) are left out.
    """
    declared = getattr(model, "_repeated_blocks", None)
    found: dict[str, nn.Module] = {}
    lists: list[str] = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or any(name.startswith(f"{outer}.") for outer in lists):
            continue
        lists.append(name)
        kinds = {type(block).__name__ for block in module}
        if len(kinds) == 1 and (not declared or kinds & set(declared)):
            found |= {f"{name}.{index}": block for index, block in enumerate(module)}
    return found
