"""Latent spaces, units, reference images and pipelines that families of images and videos share."""

from dsctl_core.media.clip import Clip
from dsctl_core.media.latent_space import LatentSpace
from dsctl_core.media.layers import Layers
from dsctl_core.media.pipeline import LatentPipeline, PicturePipeline
from dsctl_core.media.references import EditImageEmbedder
from dsctl_core.media.video import VideoPipeline

__all__ = ["Clip", "EditImageEmbedder", "LatentPipeline", "LatentSpace", "Layers", "PicturePipeline", "VideoPipeline"]
