"""Apply the memory and speed options of a run to a pipeline that is ready to be trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from dsctl_core.memory.attention import set_attention_backend
from dsctl_core.memory.compile import compile_blocks
from dsctl_core.memory.offload import offload_blocks
from dsctl_core.memory.recompute import checkpoint_some

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class MemorySettings:
    """The number of blocks to checkpoint (None: all) and to offload, compilation, the attention backend, and float8."""

    checkpointing_blocks: int | None = None
    offload_blocks: int = 0
    compile: bool = False
    attention_backend: str | None = None
    float8: bool = False

    def apply(
        self,
        networks: Sequence[nn.Module],
        device: torch.device,
        denoisers: Sequence[nn.Module],
        *,
        divided: bool = False,
    ) -> str:
        """Apply the settings to `networks`, and return the name of their attention backend.

        The numbers of blocks are those of `denoisers`, which are among the networks; of what runs beside them, such as
        a control network, all blocks are checkpointed if any are, and none is offloaded or in float8. LoRAs must
        already be added, and `requires_grad` must be set on the parameters to train. The weights of networks that are
        `divided` between processes afterwards keep their dtypes.
        """
        from dsctl_core.memory.float8 import use_float8
        from dsctl_core.memory.fused import use_fused_norms

        backend = set_attention_backend(networks, self.attention_backend, device)
        for model in networks:
            use_fused_norms(model)
            if self.checkpointing_blocks is not None and model in denoisers:
                checkpoint_some(model, self.checkpointing_blocks)
            if self.offload_blocks and model in denoisers:
                offload_blocks(model, self.offload_blocks, device)
            if self.float8 and model in denoisers:
                use_float8(model, hold=not divided)
            if self.compile:
                compile_blocks(model, device)
        return backend
