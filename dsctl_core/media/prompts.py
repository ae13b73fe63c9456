"""Put embeddings of prompts of several lengths into one batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


def pad_embeddings(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    """Return the embeddings (T, D) of each prompt as (B, T, D), padded at the end of T, and what counts, (B, T) bool.

    The mask is None if all prompts have one length.
    """
    embeds, lengths = pad_sequence(list(rows), batch_first=True), [len(row) for row in rows]
    if min(lengths) == max(lengths):
        return embeds, None
    return embeds, (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).to(embeds.device)
