"""Small pictures inside of a page: images as data, and many of them as one sheet. What does not fit is counted."""

import base64
import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from PIL import Image

Load = Callable[[Any, int], Image.Image]  # (which image, pixels) -> it, its longer side so long at most
_TO = Image.Resampling.LANCZOS


class Thumbnails:
    """Pictures of images as `data:` addresses, up to a number of bytes.

    Args:
        load: gives an image.
        limit: bytes of the page that pictures may take.
        side: pixels of the longer side.

    Attributes:
        left_out: images that were asked for and not put in, as the limit was reached.
        unreadable: images that could not be read.
    """

    def __init__(self, load: Load, limit: int = 6_000_000, side: int = 96) -> None:
        self._load, self._limit, self._side = load, limit, side
        self._held: dict[Any, str] = {}
        self.left_out, self.unreadable = 0, 0

    def read(self, images: Sequence[Any]) -> None:
        """Read the images that are to come, several at a time."""
        new = [image for image in dict.fromkeys(images) if image not in self._held]
        with ThreadPoolExecutor(4) as pool:  # decoding leaves Python's lock
            self._held.update(zip(new, pool.map(self._encoded, new), strict=True))

    def __call__(self, image: Any) -> str:
        """The address of an image; empty: there is none."""
        if image not in self._held:
            self._held[image] = self._encoded(image)
        data = self._held[image]
        if not data:
            self.unreadable += 1
        elif len(data) > self._limit:
            self.left_out += 1
            return ""
        self._limit -= len(data)
        return data

    def _encoded(self, image: Any) -> str:
        try:
            return _as_data(fitted(self._load(image, self._side), self._side))
        except (ValueError, OSError):  # gone since it was tested
            return ""

    def sheet(self, images: Sequence[Any], side: int, columns: int) -> tuple[str, int]:
        """One picture of many, line by line in squares of `side`, and how many of the images it holds."""
        rows = -(-len(images) // columns)
        sheet = Image.new("RGB", (columns * side, max(1, rows) * side), (128, 128, 128))

        def load(image: Any) -> Image.Image | None:
            try:
                return fitted(self._load(image, side), side)
            except (ValueError, OSError):
                return None

        with ThreadPoolExecutor(4) as pool:
            for i, picture in enumerate(pool.map(load, images)):
                if picture is None:
                    self.unreadable += 1
                    continue
                x, y = i % columns * side, i // columns * side
                sheet.paste(picture, (x + (side - picture.width) // 2, y + (side - picture.height) // 2))
        data = _as_data(sheet)
        if len(data) > self._limit:
            self.left_out += len(images)
            return "", 0
        self._limit -= len(data)
        return data, len(images)


def fitted(image: Image.Image, side: int) -> Image.Image:
    """An image whose longer side is `side` at most."""
    scale = side / max(image.size)
    if scale >= 1:
        return image
    return image.resize([max(1, round(length * scale)) for length in image.size], _TO)


def _as_data(image: Image.Image) -> str:
    file = io.BytesIO()
    # Tiny images are drawn enlarged, where a JPEG would show its blocks.
    kind = "png" if max(image.size) <= 32 else "jpeg"
    image.save(file, kind, **({} if kind == "png" else {"quality": 82}))
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
