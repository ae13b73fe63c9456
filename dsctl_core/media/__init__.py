"""Latent spaces, units, reference images and pipelines that families of images and videos share.

Names are imported on first use: the modules about files of images and clips load no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dsctl_core.media.clip import Clip
    from dsctl_core.media.latent_space import LatentSpace
    from dsctl_core.media.layers import Layers
    from dsctl_core.media.pipeline import LatentPipeline, PicturePipeline
    from dsctl_core.media.references import EditImageEmbedder
    from dsctl_core.media.video import VideoPipeline

_MODULES = {
    "Clip": "clip",
    "EditImageEmbedder": "references",
    "LatentPipeline": "pipeline",
    "LatentSpace": "latent_space",
    "Layers": "layers",
    "PicturePipeline": "pipeline",
    "VideoPipeline": "video",
}

__all__ = ["Clip", "EditImageEmbedder", "LatentPipeline", "LatentSpace", "Layers", "PicturePipeline", "VideoPipeline"]


def __getattr__(name: str) -> Any:
    """Import a public name on first access."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
