"""Save memory and time: gradient checkpointing, block offload, weights in 8 bits, attention backends, compilation."""

from dsctl_core.memory.recompute import gradient_checkpoint_forward

__all__ = ["gradient_checkpoint_forward"]
