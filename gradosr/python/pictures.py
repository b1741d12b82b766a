"""Pictures and text for the HTML that a notebook shows, which contains everything it needs."""

import base64
import html
import io

from PIL import Image
from torch import Tensor

SHOWN = 12
"""Images of the highest unknown scores that are shown."""


def picture(pixels: Tensor, side: int) -> Image.Image:
    """Return pixels, uint8 [3, H, W], as a picture whose longer side has `side` pixels."""
    full = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    factor = side / max(full.size)
    width, height = (max(1, round(one * factor)) for one in full.size)
    return full.resize((width, height), Image.Resampling.BICUBIC)


def shown(image: Image.Image) -> str:
    """Return a picture as an element of HTML."""
    body = io.BytesIO()
    image.convert("RGB").save(body, "JPEG", quality=80)
    source = f"data:image/jpeg;base64,{base64.b64encode(body.getvalue()).decode()}"
    return f'<img src="{source}" width="{image.width}" height="{image.height}" alt="">'


def harmless(text: str, limit: int = 200) -> str:
    """Return text from a file for HTML: no markup, control characters or great length."""
    from gradosr.audit.text import shortened

    return html.escape(shortened(text, limit))
