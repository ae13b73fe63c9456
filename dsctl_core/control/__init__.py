"""Define control networks: side networks that steer the denoiser at each step, by residuals or by hooks."""

from dsctl_core.control.hooks import HookControl
from dsctl_core.control.residuals import ResidualControl
from dsctl_core.control.units import ControlImageEmbedder
from dsctl_core.control.use import ControlUse, control_network

__all__ = ["ControlImageEmbedder", "ControlUse", "HookControl", "ResidualControl", "control_network"]
