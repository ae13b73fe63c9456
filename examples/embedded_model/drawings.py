"""Fetches the MIT-licensed Fluent Emoji (flat) drawings and renders them to pictures.

The drawings come as one npm package of SVG bodies; `npm pack` downloads it, nothing is installed.
"""

import io
import json
import subprocess
import tarfile
from functools import lru_cache
from pathlib import Path

import numpy as np
import resvg_py
from PIL import Image

PACKAGE = "@iconify-json/fluent-emoji-flat"
VERSION = "1.2.6"
RENDERED_SIZE = 256


def fetch(work: Path) -> Path:
    """Download the drawings into `work` unless they are there, and return the icons file."""
    icons = work / "drawings" / "package" / "icons.json"
    if not icons.exists():
        folder = work / "drawings"
        folder.mkdir(parents=True, exist_ok=True)
        packed = subprocess.run(
            ["npm", "pack", f"{PACKAGE}@{VERSION}", "--silent"],
            cwd=folder,
            check=True,
            capture_output=True,
            text=True,
        )
        with tarfile.open(folder / packed.stdout.strip().splitlines()[-1]) as archive:
            archive.extractall(folder, filter="data")
    return icons


class Drawings:
    """The drawings by name, each rendered once, as RGBA pictures with a transparent background."""

    def __init__(self, icons: Path) -> None:
        content = json.loads(icons.read_text())
        self._bodies = {name: icon["body"] for name, icon in content["icons"].items()}
        self._view = f"0 0 {content.get('width', 32)} {content.get('height', 32)}"
        self.render = lru_cache(maxsize=None)(self._render)
        self.fitted = lru_cache(maxsize=4096)(self._fitted)

    def names(self) -> list[str]:
        """Return the names of all drawings."""
        return sorted(self._bodies)

    def _render(self, name: str) -> Image.Image:
        """Render one drawing, cropped to what is not transparent."""
        svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{self._view}">{self._bodies[name]}</svg>'
        png = resvg_py.svg_to_bytes(svg_string=svg, width=RENDERED_SIZE, height=RENDERED_SIZE)
        image = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
        return image.crop(image.getbbox())

    def _fitted(self, name: str, size: int) -> Image.Image:
        """Return one drawing scaled so that its longer side is `size` pixels."""
        return fit(self.render(name), size)


def fit(image: Image.Image, size: int) -> Image.Image:
    """Scale a picture so that its longer side is `size` pixels.

    Colours are weighted by their opacity while scaling: transparent pixels have no colour of their
    own, and would otherwise darken the edge.
    """
    scale = size / max(image.size)
    wanted = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.convert("RGBa").resize(wanted, Image.Resampling.LANCZOS).convert("RGBA")


def outline(image: Image.Image, colour: tuple[int, int, int]) -> Image.Image:
    """Return a drawing's edges as lines of one colour on a transparent background.

    Edges are where neighbouring pixels differ, in colour or in opacity.
    """
    flat = Image.new("RGBA", (image.width + 4, image.height + 4), (0, 0, 0, 0))
    flat.paste(image, (2, 2))
    pixels = np.asarray(flat.convert("RGBa"), dtype=np.float32)
    across = np.abs(np.roll(pixels, -1, axis=1) - np.roll(pixels, 1, axis=1))
    down = np.abs(np.roll(pixels, -1, axis=0) - np.roll(pixels, 1, axis=0))
    strength = np.maximum(across, down).max(axis=2)
    lines = np.empty((*strength.shape, 4), dtype=np.uint8)
    lines[..., :3] = colour
    lines[..., 3] = np.clip((strength - 20.0) * 3.0, 0.0, 255.0)
    return Image.fromarray(lines, "RGBA")
