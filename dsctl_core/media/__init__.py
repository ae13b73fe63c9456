"""What families of pictures share: the latents' space, the units around it, and how a pipeline goes through them."""

from dsctl_core.media.latent_space import LatentSpace
from dsctl_core.media.pipeline import PicturePipeline

__all__ = ["LatentSpace", "PicturePipeline"]
