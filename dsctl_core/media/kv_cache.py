"""Add key/value caches, extra tokens computed by a template, to the attention of a transformer, block by block.

A cache is {block name: (key, value)}. All queries of the block attend to these tokens in addition to those of the
model, so a cache steers a model without changing its weights; prefix tuning is the same idea for language models
(Li & Liang 2021, arXiv:2101.00190).

Legend: a key or value is (B, T, H, D): samples, tokens, heads, channels per head. It is used unchanged, after the norm
and the rotary embedding of the model's own tokens. Templates can return (B, H, T, D) too, and other names of blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dsctl_core.errors import DsctlError
from dsctl_core.family import AttentionBlocks

KvCache = Mapping[str, tuple[Tensor, Tensor]]


def attention_modules(dit: Any, blocks: Sequence[AttentionBlocks]) -> dict[str, Any]:
    """Return the attention module of each block of a denoiser, by the name of the block in a cache.

    `blocks` are declared by the family; the names are double_0, double_1, ..., single_0, ...
    """
    return {
        f"{stack.cache_name}_{number}": block.get_submodule(stack.attention)
        for stack in blocks
        for number, block in enumerate(getattr(dit, stack.module, ()))
    }


def block_heads(dit: Any, blocks: Sequence[AttentionBlocks]) -> dict[str, tuple[int, int]]:
    """Return the number of heads and of channels per head, (H, D), of each block of a denoiser, by name."""
    return {name: (attn.heads, attn.inner_dim // attn.heads) for name, attn in attention_modules(dit, blocks).items()}


def with_model_layout(cache: Any, dit: Any, blocks: Sequence[AttentionBlocks]) -> dict[str, tuple[Tensor, Tensor]]:
    """Return `cache` with the block names of the family and tensors (B, T, H, D).

    As in DiffSynth-Studio, a tensor whose shape ends in the model's (H, D) is (B, T, H, D), so also if T is H, and else
    one with H and D at the second and the last place is (B, H, T, D). Others are left to `check_kv_cache`. Raises
    DsctlError for two entries of one block.
    """
    heads = block_heads(dit, blocks)
    same = {
        f"{other}_{number}": f"{stack.cache_name}_{number}"
        for stack in blocks
        for other in stack.other_cache_names
        for number in range(len(getattr(dit, stack.module, ())))
    }
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for given, (key, value) in _entries(cache).items():
        name = same.get(given, given)
        if name in found:
            raise DsctlError(
                f"a kv_cache has the block {name} twice, once under another name", hint="return each block once"
            )
        wanted, shape = heads.get(name), tuple(key.shape)
        if wanted is not None and shape[2:] != wanted and (shape[1], shape[3]) == wanted:
            key, value = key.transpose(1, 2), value.transpose(1, 2)
        found[name] = (key, value)
    return found


def check_kv_cache(cache: Any, heads: Mapping[str, tuple[int, int]], batch: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the entries of `cache` that have tokens, each expanded to `batch` samples.

    `heads` is (H, D) for each block of the model. An entry with batch size 1 is used for all samples. Raises DsctlError
    for a block that the model does not have, and for a wrong shape.
    """
    found = {}
    for name, (key, value) in _entries(cache).items():
        if name not in heads:
            raise DsctlError(
                f"a kv_cache has the block {name!r}, which this model does not have",
                hint=f"its blocks are {_listed(list(heads))}",
            )
        for what, tensor in (("key", key), ("value", value)):
            if tensor.ndim != 4 or tuple(tensor.shape[2:]) != heads[name] or tensor.shape[0] not in (1, batch):
                raise DsctlError(
                    f"the kv_cache of the block {name} has a {what} of shape {tuple(tensor.shape)}, but this model "
                    f"takes {_form(batch, heads[name])}",
                    hint="make it (samples, tokens, heads, numbers a head)",
                )
        if key.shape[1] > 0:
            found[name] = (key.expand(batch, -1, -1, -1), value.expand(batch, -1, -1, -1))
    return found


class CachedProcessor:
    """Base class of attention processors with cached tokens; without them it acts like the processor of the model.

    The class of a family derives from this one and from diffusers' processor. A processor stores the name of its block,
    because the transformer passes the same arguments to all blocks, also when gradient checkpointing recomputes a
    block.
    """

    def __init__(self, block: str, plain: Any) -> None:
        super().__init__()
        self.block = block
        self._attention_backend, self._parallel_config = plain._attention_backend, plain._parallel_config

    def cached(self, kv_cache: KvCache | None) -> tuple[Tensor, Tensor] | None:
        """Return the key and value for this block in `kv_cache`, or None."""
        return None if kv_cache is None else kv_cache.get(self.block)


def admit_kv_cache(
    dit: Any,
    blocks: Sequence[AttentionBlocks],
    kv_cache: KvCache | None,
    batch: int,
    processor: Callable[[str, Any], CachedProcessor],
) -> dict[str, Any]:
    """Return the keyword argument for the attention of the transformer with the cached tokens; {} without tokens.

    The first cache that has tokens installs the processors: `processor(block name, previous processor)` for each block.
    Raises DsctlError for a cache that does not match the model; see `check_kv_cache`.
    """
    if kv_cache is None:
        return {}
    checked = check_kv_cache(with_model_layout(kv_cache, dit, blocks), block_heads(dit, blocks), batch)
    if not checked:
        return {}
    for name, attn in attention_modules(dit, blocks).items():
        if not isinstance(attn.processor, CachedProcessor):
            attn.set_processor(processor(name, attn.processor))
    return {"kv_cache": checked}


def join_kv_caches(caches: Sequence[Any]) -> dict[str, tuple[Tensor, Tensor]]:
    """Return one cache with the tokens of all `caches`, concatenated in this order for each block."""
    parts: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for cache in caches:
        for name, pair in _entries(cache).items():
            parts.setdefault(name, []).append(pair)
    return {name: pairs[0] if len(pairs) == 1 else _joined(name, pairs) for name, pairs in parts.items()}


def stack_kv_caches(caches: Sequence[Any]) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the cache of a batch from the caches of its samples; raise DsctlError if blocks or shapes differ."""
    entries = [_entries(cache) for cache in caches]
    if len(entries) == 1:
        return dict(entries[0])
    stacked = {}
    for name in dict.fromkeys(name for each in entries for name in each):
        if not all(name in each for each in entries):
            raise DsctlError(
                f"one batch has a sample with a kv_cache for the block {name}, and one without",
                hint="give a batch size of 1",
            )
        shapes = {tuple(each[name][0].shape) for each in entries}
        if len(shapes) > 1:
            first, other = sorted(shapes)[:2]
            raise DsctlError(
                f"one batch has samples whose kv_cache of the block {name} is {first} and {other}",
                hint="give a batch size of 1",
            )
        stacked[name] = (torch.cat([e[name][0] for e in entries]), torch.cat([e[name][1] for e in entries]))
    return stacked


def _joined(name: str, pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    batch = max(key.shape[0] for key, _ in pairs)
    for key, _ in pairs:
        if key.shape[2:] != pairs[0][0].shape[2:] or key.shape[0] not in (1, batch):
            raise DsctlError(
                f"two kv_caches of the block {name} do not fit each other: {tuple(pairs[0][0].shape)} and "
                f"{tuple(key.shape)}",
                hint="check that both templates are for this model",
            )
    keys, values = ([each.expand(batch, -1, -1, -1) for each in column] for column in zip(*pairs, strict=True))
    return torch.cat(keys, dim=1), torch.cat(values, dim=1)


def _entries(cache: Any) -> dict[str, tuple[Tensor, Tensor]]:
    """Return `cache` as a dict of (key, value); raise DsctlError if it is malformed or a pair differs in shape."""
    if not isinstance(cache, Mapping):
        raise DsctlError(
            f"a kv_cache is a {type(cache).__name__}", hint="make it a dict from block names to (key, value)"
        )
    found = {}
    for name, pair in cache.items():
        pairs = isinstance(pair, tuple | list) and len(pair) == 2 and all(isinstance(each, Tensor) for each in pair)
        if not pairs:
            raise DsctlError(
                f"the kv_cache of the block {name} is no pair of tensors", hint="make it a tuple (key, value)"
            )
        key, value = pair
        if key.ndim != 4 or key.shape != value.shape:
            raise DsctlError(
                f"the kv_cache of the block {name} has a key of shape {tuple(key.shape)} and a value of shape "
                f"{tuple(value.shape)}",
                hint="make both (samples, tokens, heads, numbers a head)",
            )
        found[str(name)] = (key, value)
    return found


def _form(batch: int, heads: tuple[int, int]) -> str:
    return f"(1{f' or {batch}' if batch > 1 else ''}, tokens, {heads[0]}, {heads[1]})"


def _listed(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 4 else f"{names[0]}, {names[1]}, ..., {names[-1]}"
