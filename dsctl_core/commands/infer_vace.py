"""Read the control video, the mask and the reference images that a clip of `dsctl infer` is to follow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dsctl_core.commands.infer_video import InputVideo, read_input, require_size
from dsctl_core.data.frame_rule import FrameRule
from dsctl_core.data.images import LoadImage
from dsctl_core.data.sizes import ImageCropAndResize
from dsctl_core.data.video import is_clip
from dsctl_core.options import InferOptions


def follows(options: InferOptions) -> dict[str, Any]:
    """Return what a clip is to follow, as written into its metadata; nothing if nothing is named."""
    vace = options.vace
    named = {"vace_video": vace.vace_video, "vace_video_mask": vace.vace_video_mask}
    found: dict[str, Any] = {name: str(path) for name, path in named.items() if path is not None}
    if vace.vace_reference_image:
        found["vace_reference_image"] = [str(path) for path in vace.vace_reference_image]
    if vace.vace_scale is not None:
        found["vace_scale"] = list(vace.vace_scale.values)
    return found


def vace_inputs(options: InferOptions, video: InputVideo | None, fit: ImageCropAndResize) -> dict[str, Any]:
    """Return the inputs of the pipeline for the options of `options.vace`, `video` being the control video.

    Raises DsctlError for a file that cannot be used, and for a mask of another size or length than the video.
    """
    vace = options.vace
    found: dict[str, Any] = {}
    if video is not None:
        found["vace_video"] = video.load(fit)
        if vace.vace_video_mask is not None:
            found["vace_video_mask"] = _mask(vace.vace_video_mask, video, fit)
    if vace.vace_reference_image:
        pictures = [read_input("vace_reference_image", LoadImage(), path) for path in vace.vace_reference_image]
        found["vace_reference_image"] = pictures
    if vace.vace_scale is not None:
        found["vace_scale"] = vace.vace_scale.values
    return found


def _mask(path: Path, video: InputVideo, fit: ImageCropAndResize) -> Any:
    """Return the frames of a mask, as many as `video` has, or the picture for all of them."""
    if is_clip(path):
        rule = FrameRule(video.frames, *video.divisions, video.rule.fps)
        mask = InputVideo.open("vace_video_mask", path, rule)
        require_size("vace_video_mask", mask.size, "vace_video", video.size)
        return mask.load(fit)
    picture = read_input("vace_video_mask", LoadImage(), path)
    require_size("vace_video_mask", picture.size, "vace_video", video.size)
    return fit(picture)
