"""Datasets: metadata tables and folders of files, the operators that load them, and checks before training."""

from dsctl_core.data.buckets import ImageToBucket
from dsctl_core.data.captions import Captions
from dsctl_core.data.check import DatasetError, check_dataset, usable_part
from dsctl_core.data.dataset import UnifiedDataset
from dsctl_core.data.images import LoadImage
from dsctl_core.data.operators import Chain, Operator, SequentialProcess, ToAbsolutePath
from dsctl_core.data.problems import DataError
from dsctl_core.data.routing import RouteByExtensionName, RouteByType, ToList
from dsctl_core.data.sizes import Fit, ImageCropAndResize
from dsctl_core.data.video import LoadGIF, LoadVideo

__all__ = [
    "Captions",
    "Chain",
    "DataError",
    "DatasetError",
    "Fit",
    "ImageCropAndResize",
    "ImageToBucket",
    "LoadGIF",
    "LoadImage",
    "LoadVideo",
    "Operator",
    "RouteByExtensionName",
    "RouteByType",
    "SequentialProcess",
    "ToAbsolutePath",
    "ToList",
    "UnifiedDataset",
    "check_dataset",
    "usable_part",
]
