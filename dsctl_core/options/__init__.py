"""Every option, once: its name, type, bounds, default and description. Imports no torch."""

from dsctl_core.options.base import Options
from dsctl_core.options.cache import CacheOptions, CacheUseOptions
from dsctl_core.options.data import DataOptions, ReadingOptions
from dsctl_core.options.dataset import DatasetValidateOptions
from dsctl_core.options.infer import InferOptions
from dsctl_core.options.lora import LoraFile, LoraOptions
from dsctl_core.options.model import ModelOptions
from dsctl_core.options.report import ReportOptions
from dsctl_core.options.seeing import SeeingOptions
from dsctl_core.options.show import DoctorOptions, ModelsListOptions, ModelsShowOptions
from dsctl_core.options.train import TASKS, TrainOptions
from dsctl_core.options.training import OutputOptions, TrainingOptions

__all__ = [
    "TASKS",
    "CacheOptions",
    "CacheUseOptions",
    "DataOptions",
    "DatasetValidateOptions",
    "DoctorOptions",
    "InferOptions",
    "LoraFile",
    "LoraOptions",
    "ModelOptions",
    "ModelsListOptions",
    "ModelsShowOptions",
    "Options",
    "OutputOptions",
    "ReadingOptions",
    "ReportOptions",
    "SeeingOptions",
    "TrainOptions",
    "TrainingOptions",
]
