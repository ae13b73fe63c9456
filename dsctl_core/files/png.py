"""Write PNG files with what they were made of in them, and read it back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsctl_core.files.atomic import atomic_path
from dsctl_core.files.json import decode_json

if TYPE_CHECKING:
    from PIL.Image import Image

ABOUT = "parameters"  # the tEXt chunk with what a picture was made of, as other programs call it, too


def write_png(file: Path, picture: Image, about: dict[str, Any]) -> None:
    """Write `picture` to `file` atomically, with `about` as JSON in the tEXt chunk "parameters"."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text(ABOUT, json.dumps(about))
    with atomic_path(file) as temporary:
        picture.save(temporary, format="PNG", pnginfo=info)


def about_picture(path: Path) -> dict[str, Any]:
    """Return the metadata that `write_png` wrote into a PNG; {} if the file is no such picture."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path, formats=["PNG"]) as picture:
            about = decode_json(picture.info.get(ABOUT, "{}"))
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError):
        return {}  # SyntaxError: Pillow's word for a broken PNG
    return about if isinstance(about, dict) and "dsctl_version" in about else {}
