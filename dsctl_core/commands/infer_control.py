"""Read the pictures and masks that the control networks of a run of `dsctl infer` follow."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsctl_core.commands.infer_inputs import Settings, require_size
from dsctl_core.data.images import LoadImage
from dsctl_core.data.sizes import ImageCropAndResize
from dsctl_core.errors import DsctlError, UsageError
from dsctl_core.families.controlnets import painting_on_input
from dsctl_core.families.resolve import ResolvedModel
from dsctl_core.options import InferOptions
from dsctl_core.readable import counted

if TYPE_CHECKING:
    from PIL.Image import Image

CONTROL_PICTURES = ("control_image", "control_mask")  # the options with the pictures of control networks


def control_inputs(options: InferOptions, resolved: ResolvedModel, settings: Settings) -> dict[str, Any]:
    """Return the pictures of the control networks, fitted to the size, under the names of their inputs.

    Raises DsctlError for masks of more or fewer networks than take one, or of another size than the picture.
    """
    if not resolved.side_networks:
        return {}
    controls, factor = options.controls, resolved.parts.division_factor
    fit = ImageCropAndResize(settings.height, settings.width, None, factor, factor)
    masked = [side for side in resolved.side_networks if len(side.pictures) > 1]
    if len(masked) != len(controls.control_mask):
        raise UsageError(
            f"--control-mask is given {counted(len(controls.control_mask), 'time')}, but "
            f"{counted(len(masked), 'control network takes', 'control networks take')} one",
            hint="give --control-mask once for each --controlnet that takes a mask, in the same order",
        )
    painting = painting_on_input(resolved)
    if painting is not None and options.input_image is None:
        raise UsageError(
            f"--controlnet {painting.label} paints a part of a picture anew, but --input-image is not given",
            hint="give --input-image FILE too",
        )
    masks = iter(controls.control_mask)
    found: dict[str, Image] = {}
    for side, path in zip(resolved.side_networks, controls.control_image, strict=True):
        given = {side.pictures[0]: ("--control-image", path)}
        given |= {side.pictures[1]: ("--control-mask", next(masks))} if side in masked else {}
        pictures = {name: _picture(flag, file) for name, (flag, file) in given.items()}
        sizes = [picture.size for picture in pictures.values()]
        if side is painting and options.input_image is not None:
            size = _picture("--input-image", options.input_image).size
            require_size("control_mask", sizes[1], "input_image", size)
        elif len(set(sizes)) > 1:
            raise DsctlError(
                f"--control-mask is {sizes[1][0]}x{sizes[1][1]}, but --control-image is {sizes[0][0]}x{sizes[0][1]}",
                hint="give a mask as large as the picture",
            )
        found |= {name: fit(picture) for name, picture in pictures.items()}
    return {"control_inputs": found}


def _picture(flag: str, path: Path) -> Image:
    try:
        return LoadImage()(path)
    except DsctlError as error:
        raise DsctlError(f"{flag}: {error.problem}", hint=f"give {flag} another picture") from error
