"""Small images for pages, inline: no page asks anything for them. Loads no torch."""

from __future__ import annotations

import base64
import io

from PIL import Image

SIDE = 160
"""Pixels of the longer side."""
QUALITY = 70


def thumbnail(image: Image.Image, side: int = SIDE) -> str:
    """An RGB image of at most `side` pixels a side, as WebP in a `data:` address."""
    small = image.copy()
    small.thumbnail((side, side))
    buffer = io.BytesIO()
    small.save(buffer, format="WEBP", quality=QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
