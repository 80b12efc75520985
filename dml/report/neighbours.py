"""A picture of queries and their nearest neighbours: right ones framed in green, wrong ones in red, others in gray."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

_CELL, _FRAME, _GAP, _LINE = 96, 4, 8, 18  # pixels
_RIGHT, _WRONG, _QUERY, _TEXT = (46, 160, 67), (207, 34, 46), (87, 96, 106), (31, 35, 40)
_FRAMES = {True: _RIGHT, False: _WRONG, None: _QUERY}


class Example(NamedTuple):
    """A query and what was found for it.

    Attributes:
        query: its image.
        name: of its class.
        found: its nearest neighbours, the nearest first, each with whether it is of the query's class (None: nobody
            knows).
    """

    query: Image.Image
    name: str
    found: Sequence[tuple[Image.Image, bool | None]]


def draw_neighbours(groups: Sequence[tuple[str, Sequence[Example]]], path: Path) -> Path:
    """Draw a line for each query: the query, a gap, its neighbours.

    Args:
        groups: (title, examples) of each block of lines, such as the worst queries and typical ones.
        path: of the picture.

    Returns:
        The picture's path.
    """
    large, small = _font(15), _font(12)
    columns = 1 + max((len(example.found) for _, examples in groups for example in examples), default=0)
    step = _CELL + 2 * _FRAME + _GAP
    height = _GAP + sum(_LINE + 6 + len(examples) * (step + _LINE) for _, examples in groups)
    sheet = Image.new("RGB", (2 * _GAP + columns * step + 2 * _GAP, height), "white")
    draw = ImageDraw.Draw(sheet)
    y = _GAP
    for title, examples in groups:
        draw.text((_GAP, y), title, font=large, fill=_TEXT)
        y += _LINE + 6
        for example in examples:
            draw.text((_GAP, y), _printable(example.name), font=small, fill=_TEXT)
            y += _LINE
            _paste(sheet, example.query, _GAP, y, _QUERY)
            for i, (image, right) in enumerate(example.found):
                _paste(sheet, image, 3 * _GAP + (i + 1) * step, y, _FRAMES[right])
            y += step
    sheet.save(path)
    return path


def _paste(sheet: Image.Image, image: Image.Image, x: int, y: int, colour: tuple[int, int, int]) -> None:
    side = _CELL + 2 * _FRAME
    ImageDraw.Draw(sheet).rectangle((x, y, x + side - 1, y + side - 1), outline=colour, width=_FRAME)
    scale = _CELL / max(image.size)
    fitted = image.resize([max(1, round(length * scale)) for length in image.size], Image.Resampling.LANCZOS)
    sheet.paste(fitted, (x + (side - fitted.width) // 2, y + (side - fitted.height) // 2))


def _font(size: int) -> ImageFont.FreeTypeFont:
    import matplotlib  # its font knows more alphabets than Pillow's

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)


def _printable(name: str) -> str:
    """Names of folders can be anything; the picture shows one line of what can be drawn."""
    text = "".join(c if c.isprintable() and not "\ud800" <= c <= "\udfff" else "?" for c in name)
    return text if len(text) <= 80 else f"{text[:77]}..."
