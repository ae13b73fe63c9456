"""Convert pictures from the colour profile in their file (ICC.1:2022) to sRGB, in which models see colours."""

from __future__ import annotations

from functools import lru_cache
from io import BytesIO
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from PIL import Image as PilImage

ProfileUse = Literal["none", "converted", "damaged"]

# The modes of pixels that a profile can describe, by its colour space.
MODES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}
# A profile that changes no colour by more levels (of 255) is one of the many spellings of sRGB: the pixels stay.
TOLERANCE = 4
PROBE_LEVELS = (0, 16, 32, 64, 96, 128, 160, 192, 224, 255)


def to_srgb(image: PilImage.Image, profile: bytes | None) -> PilImage.Image:
    """Return an 8-bit image with its colours in sRGB, as it is if it has no `profile` or is in sRGB.

    The alpha channel stays. A profile that is damaged, or of other pixels than those of the image, is not used.
    """
    from PIL import ImageCms

    if profile is None:
        return image
    transparent = image.has_transparency_data
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA" if transparent else "RGB")
    elif transparent and image.mode in ("RGB", "L"):  # one colour is transparent, which the conversion would change
        image = image.convert("RGBA" if image.mode == "RGB" else "LA")
    mode = {"RGBA": "RGB", "LA": "L"}.get(image.mode, image.mode)
    transform = _transform(profile, mode)
    if transform is None or isinstance(transform, str):
        return image
    alpha = image.getchannel("A") if image.mode in ("RGBA", "LA") else None
    converted = ImageCms.applyTransform(image.convert(mode), transform)
    assert converted is not None  # only a conversion in place returns nothing
    if alpha is not None:
        converted.putalpha(alpha)
    return converted


def profile_use(image: PilImage.Image) -> ProfileUse:
    """Return what `to_srgb` does with the profile in the file of an image."""
    profile = image.info.get("icc_profile")
    if not profile:
        return "none"
    mode = {"RGBA": "RGB", "P": "RGB", "PA": "RGB", "LA": "L", "La": "L"}.get(image.mode, image.mode)
    transform = _transform(profile, "L" if mode.startswith("I") else mode)
    if isinstance(transform, str):
        return "damaged"
    return "none" if transform is None else "converted"


@lru_cache(maxsize=64)
def _transform(profile: bytes, mode: str) -> Any:
    """Return the transform of pixels of a mode from `profile` to sRGB; None if there is nothing to do.

    Return "damaged" for a profile that cannot be used.
    """
    from PIL import Image, ImageCms

    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        if MODES.get(source.profile.xcolor_space) != mode:
            return None
        # Threads share the transform, so it keeps no pixel from one call to the next.
        flags = ImageCms.Flags.BLACKPOINTCOMPENSATION | ImageCms.Flags.NOCACHE
        transform = ImageCms.buildTransform(
            source,
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            flags,
        )
        if mode == "CMYK":
            return transform
        values = [(r, g, b) for r in PROBE_LEVELS for g in PROBE_LEVELS for b in PROBE_LEVELS]
        probe = Image.new("RGB", (len(values), 1))
        probe.putdata(values if mode == "RGB" else [(r, r, r) for r, _, _ in values])
        found = ImageCms.applyTransform(probe.convert(mode), transform)
    except (ImageCms.PyCMSError, OSError, ValueError):
        return "damaged"
    assert found is not None
    changes = zip(found.tobytes(), probe.tobytes(), strict=True)
    return transform if max(abs(new - old) for new, old in changes) > TOLERANCE else None
