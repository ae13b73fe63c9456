"""Trading time for memory: recomputing activations, keeping them on the host, storing weights in fewer bits."""

from dsctl_core.memory.recompute import gradient_checkpoint_forward

__all__ = ["gradient_checkpoint_forward"]
