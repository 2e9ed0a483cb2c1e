"""Pictures with a palette of 64 colors: a quarter of the bytes, and hardly a visible difference."""

import io
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image


def save_small(figure: Figure, path: Path, dpi: int) -> None:
    """Writes a figure as a PNG with a palette."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=dpi)
    reduce_colors(Image.open(drawn), path)


def reduce_colors(image: Image.Image, path: Path) -> None:
    """Writes an image as a PNG with a palette, without dithering."""
    palette = image.convert("RGB").quantize(
        64, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE
    )
    palette.save(path, format="png", optimize=True)
