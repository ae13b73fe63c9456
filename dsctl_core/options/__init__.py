"""Every option, once: its name, type, bounds, default and description. Imports no torch.

Each name is imported when it is first used: a command builds the options that it takes, and no others.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dsctl_core.options.base import Options
    from dsctl_core.options.cache import CacheOptions, CacheUseOptions
    from dsctl_core.options.callbacks import CallbackOptions
    from dsctl_core.options.data import DataOptions, ReadingOptions
    from dsctl_core.options.dataset import DatasetAnnotateOptions, DatasetCaptionOptions, DatasetValidateOptions
    from dsctl_core.options.infer import InferOptions
    from dsctl_core.options.lora import LoraFile, LoraOptions
    from dsctl_core.options.model import ModelOptions
    from dsctl_core.options.optimizer import OptimizerOptions
    from dsctl_core.options.report import ReportOptions
    from dsctl_core.options.show import DoctorOptions, ModelsListOptions, ModelsShowOptions
    from dsctl_core.options.train import TASKS, TrainOptions
    from dsctl_core.options.training import OutputOptions, TrainingOptions

__all__ = [
    "TASKS",
    "CacheOptions",
    "CacheUseOptions",
    "DataOptions",
    "DatasetAnnotateOptions",
    "DatasetCaptionOptions",
    "DatasetValidateOptions",
    "DoctorOptions",
    "InferOptions",
    "LoraFile",
    "LoraOptions",
    "ModelOptions",
    "ModelsListOptions",
    "ModelsShowOptions",
    "OptimizerOptions",
    "Options",
    "OutputOptions",
    "ReadingOptions",
    "ReportOptions",
    "CallbackOptions",
    "TrainOptions",
    "TrainingOptions",
]

_PLACES = {
    "base": ("Options",),
    "cache": ("CacheOptions", "CacheUseOptions"),
    "data": ("DataOptions", "ReadingOptions"),
    "dataset": ("DatasetAnnotateOptions", "DatasetCaptionOptions", "DatasetValidateOptions"),
    "infer": ("InferOptions",),
    "lora": ("LoraFile", "LoraOptions"),
    "model": ("ModelOptions",),
    "optimizer": ("OptimizerOptions",),
    "report": ("ReportOptions",),
    "callbacks": ("CallbackOptions",),
    "show": ("DoctorOptions", "ModelsListOptions", "ModelsShowOptions"),
    "train": ("TASKS", "TrainOptions"),
    "training": ("OutputOptions", "TrainingOptions"),
}


def __getattr__(name: str) -> Any:
    """Import a name from its module when it is first asked for."""
    for module, names in _PLACES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
