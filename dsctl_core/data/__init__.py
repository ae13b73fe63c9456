"""Datasets: metadata files, operators from a cell to a picture, and checks before training."""

from dsctl_core.data.check import DatasetError, check_dataset
from dsctl_core.data.dataset import UnifiedDataset
from dsctl_core.data.images import ImageCropAndResize, LoadImage
from dsctl_core.data.operators import Chain, Operator, SequentialProcess, ToAbsolutePath

__all__ = [
    "Chain",
    "DatasetError",
    "ImageCropAndResize",
    "LoadImage",
    "Operator",
    "SequentialProcess",
    "ToAbsolutePath",
    "UnifiedDataset",
    "check_dataset",
]
