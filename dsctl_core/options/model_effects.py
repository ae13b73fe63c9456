"""Declare which options have no effect on which models; see dsctl_core.options.effects."""

from __future__ import annotations

from dsctl_core.options.effects import Idle

PICTURES_ONLY = Idle(
    ("num_frames", "fps", "short_clips", "clip_extraction", "end_image", "input_video"),
    "on {title}, which makes pictures, not clips",
    "leave it out, or choose a model for videos",
)
SPREAD = Idle(
    ("fps",),
    "with --clip-extraction uniform, which spreads the frames over all of a video",
    "leave out one of the two",
    when=lambda options: options.clip_extraction == "uniform",
)
NO_FIRST_FRAME = Idle(
    ("input_image",),
    "on {model}, which takes no first frame",
    "leave it out, choose an image to video model, or start from a clip: --input-video",
)
NO_LAST_FRAME = Idle(
    ("end_image",),
    "on {model}, which takes no last frame",
    "leave it out, or choose a model of first and last frame",
)
_REPLACED = (
    "at --denoising-strength 1, which replaces all of it",
    "give a lower --denoising-strength, such as 0.6, or an --inpaint-mask",
)
PICTURE_REPLACED = Idle(("input_image",), *_REPLACED)
CLIP_REPLACED = Idle(
    ("input_video",),
    *_REPLACED,
    when=lambda options: options.denoising_strength == 1 and options.inpaint_mask is None,
)
EDITS_NOTHING = Idle(
    ("edit_image",),
    "on {title}, which takes no pictures to edit",
    "to start from a picture give --input-image; `dsctl models` lists the models",
)
NO_VACE = Idle(
    ("vace_video", "vace_video_mask", "vace_reference_image", "vace_scale"),
    "on {title}, which follows no clip",
    "leave it out, or choose a VACE model",
)
NO_VACE_VIDEO = Idle(
    ("vace_video_mask",),
    "without --vace-video",
    "give --vace-video FILE too",
    when=lambda options: options.vace_video is None,
)
NO_LAYERS = Idle(
    ("layers",), "on {title}, which makes no layers", "leave it out, or choose a model that decomposes pictures"
)
DECOMPOSES = Idle(
    ("input_image",),
    "on {title}, which starts from no picture but decomposes one",
    "give --edit-image FILE instead",
)
NO_GUIDANCE_INPUT = Idle(("embedded_guidance",), "on {title}, which takes none", "give --cfg-scale instead")
GUIDANCE_OFF = Idle(
    ("negative_prompt", "negative_template_inputs"),
    "at --cfg-scale 1, which is no guidance",
    "give a --cfg-scale above 1, or leave out {flag}",
)
NO_PICTURE = Idle(
    ("denoising_strength", "inpaint_mask"),
    "without --input-image",
    "give --input-image FILE too, or --input-video FILE for a clip",
    when=lambda options: options.input_image is None and options.input_video is None,
)
STILL = Idle(("fps",), "on a single frame that is written as PNG", "leave it out, or give --num-frames 5 or more")
NO_CLIP = Idle(
    ("denoising_strength", "inpaint_mask"),
    "on {title} without --input-video",
    "give --input-video FILE too",
)
