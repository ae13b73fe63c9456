"""Find the repeated blocks of a model, which hold most of its weights and can be processed one at a time."""

from __future__ import annotations

from torch import nn


def repeated_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """Return the repeated blocks of `model` by name, in the order of their definition.

    These are the entries of the outermost module lists with entries of one class. If the model declares the classes of
    its blocks (diffusers' `_repeated_blocks`), lists of other classes are left out.
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


def blocks_by_list(model: nn.Module) -> dict[str, list[nn.Module]]:
    """Return the repeated blocks of `model` by the name of the list that they are in."""
    lists: dict[str, list[nn.Module]] = {}
    for name, block in repeated_blocks(model).items():
        lists.setdefault(name.rpartition(".")[0], []).append(block)
    return lists
