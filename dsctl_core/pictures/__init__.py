"""What families of pictures share: the latents' space, the units around it, and how a pipeline goes through them."""

from dsctl_core.pictures.pipeline import PicturePipeline
from dsctl_core.pictures.space import LatentSpace

__all__ = ["LatentSpace", "PicturePipeline"]
