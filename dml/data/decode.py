"""Image -> pixels, the same every time: decoded, turned upright, cut to a box, resized. What a cache may keep.

Images of more than 8 bits are scaled by one rule for all of a data set, so that none is made brighter than another. A
value `white` becomes 255 and smaller ones their share of it (whole numbers rounded down, others to the nearest); larger
ones are 255 too. It is what the file itself says (PGM, JPEG 2000, TIFF of 12 bits), else what the user says, else
65535 for 16 bits without a sign. Where that would be a guess, the image is refused: floats and 32-bit integers say
nothing of their white, and 16-bit files whose largest value fits in 14 bits are seldom as dark as that.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from PIL.ImageFile import ImageFile
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile
from PIL.TiffImagePlugin import TiffImageFile
from torch import Tensor

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
Size = Callable[[int, int], tuple[int, int]]  # (width, height) of an image -> those it is brought to


@dataclass(frozen=True)
class Decode:
    """Image and box, or None -> uint8 tensor [3, h, w] whose memory is interleaved, [h, w, 3].

    Interleaved, because rows of a crop are copied whole, and it is how networks in channels last want them.

    Attributes:
        resize: pixels that the named side is brought to; None leaves the image as large as it is.
        side: larger, shorter, or both (squash to a square).
        fill: gray value that transparent pixels are put on.
        white: value that becomes 255, of images with more than 8 bits; None: what the kind of file says.
        interpolation: how it is resized.
    """

    resize: int | None = None
    side: str = "larger"
    fill: int = 0
    white: float | None = None
    interpolation: Interpolation = "bilinear"

    def __call__(self, image: Path | np.ndarray, box: Box | None = None) -> Tensor:
        """The pixels of an image; errors are those of load_image."""
        loaded = load_image(
            image,
            box,
            None if self.resize is None else self._resized,
            fill=self.fill,
            white=self.white,
            interpolation=self.interpolation,
        )
        return torch.from_numpy(np.array(loaded)).movedim(2, 0)

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        assert self.resize is not None
        if self.side == "both":
            return self.resize, self.resize
        named = max(width, height) if self.side == "larger" else min(width, height)
        # One pixel at least: thin images would vanish.
        return max(1, int(self.resize * width / named)), max(1, int(self.resize * height / named))


def load_image(
    image: Path | np.ndarray,
    box: Box | None = None,
    resized: Size | None = None,
    *,
    fill: int = 0,
    white: float | None = None,
    interpolation: Interpolation = "bilinear",
) -> Image.Image:
    """Decode an image to RGB, turned upright by its EXIF orientation; of several frames or pages the first.

    A JPEG of four times the size asked for or more is decoded at a half, a quarter or an eighth, to twice that size at
    least: a 2000 x 1500 photo to 256 pixels in two thirds of the time, its values then differing by 4 of 255 at most
    and by 0.4 in the mean. One that is cut to a box is not.

    Args:
        image: a file, or pixels [h, w], [h, w, 3] or [h, w, 4] (the last is how opaque they are).
        box: what to cut it to, once upright.
        resized: the size that an image of a given size is brought to.
        fill: gray value that transparent pixels are put on: what lies under them is often garbage.
        white: value that becomes 255, of more than 8 bits (see above); None: what the kind of file says.
        interpolation: how it is brought to that size, with antialiasing.

    Raises:
        ValueError: the image cannot be read, or which of its values is white cannot be known; names its path.
    """
    try:
        if isinstance(image, np.ndarray):
            upright = _on_ground(_of_array(image, white), fill)
            size = upright.size
        else:
            with Image.open(image) as opened:
                size = opened.size
                # Before Pillow reads any pixel.
                deep, said, negative = _is_deep_colour(opened), _white_of_file(opened), _is_negative(opened)
                if resized is not None and box is None:
                    width, height = resized(*size)
                    opened.draft(None, (2 * width, 2 * height))  # None: the mode stays
                if opened.getexif().get(ExifTags.Base.Orientation, 1) > 4:
                    size = size[::-1]
                upright = ImageOps.exif_transpose(opened)
            if upright.mode.startswith(("I", "F")):
                upright = _of_deep(upright, said, white)
                upright = ImageOps.invert(upright) if negative else upright
            elif deep:
                _check_deep_colour(upright, white)
            upright = _on_ground(upright, fill)
    except Exception as error:  # of any kind: Pillow's readers do not check all that a broken file makes them do
        name = f"{list(image.shape)} of {image.dtype}" if isinstance(image, np.ndarray) else image
        raise ValueError(f"the image {name} cannot be read: {error}") from error
    if box is not None:
        upright = upright.crop(box)
        size = upright.size
    return upright if resized is None else upright.resize(resized(*size), Image.Resampling[interpolation.upper()])


def _on_ground(image: Image.Image, fill: int) -> Image.Image:
    """RGB; what is transparent shows the ground."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    ground = Image.new("RGB", image.size, (fill, fill, fill))
    ground.paste(image.convert("RGB"), mask=image.getchannel("A"))
    return ground


def _of_array(pixels: np.ndarray, white: float | None) -> Image.Image:
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    if pixels.dtype not in (np.uint8, np.bool_):
        pixels = _eight_bits(pixels, white, sixteen=pixels.dtype == np.uint16)
    return Image.fromarray(pixels)


def _white_of_file(opened: Image.Image) -> float | None:
    """The value that a file itself says is white, of images with more than 8 bits."""
    if opened.mode.startswith("I") and (opened.format == "PPM" or _bits_of_jpeg2000(opened) < 16):
        return 65535  # to which Pillow has scaled them, by what the file says
    bits = int(opened.tag_v2.get(258, (16,))[0]) if isinstance(opened, TiffImageFile) else 16
    return 2**bits - 1 if 8 < bits < 16 else None


def _bits_of_jpeg2000(opened: Image.Image) -> int:
    """Bits of the first channel as a JPEG 2000 file says (SIZ, ISO/IEC 15444-1 A.5.1); 16 if it is another file."""
    if not isinstance(opened, Jpeg2KImageFile):
        return 16
    assert opened.fp is not None  # no pixel has been read
    before = opened.fp.tell()
    opened.fp.seek(0)
    head = opened.fp.read(2**20)
    opened.fp.seek(before)
    start = head.find(b"\xff\x4f\xff\x51")  # SOC and SIZ
    return (head[start + 42] & 0x7F) + 1 if 0 <= start < len(head) - 42 else 16


def _is_negative(opened: Image.Image) -> bool:
    """Whether a TIFF says that its value 0 is white, which Pillow heeds in images of 8 bits only."""
    return isinstance(opened, TiffImageFile) and opened.tag_v2.get(262) == 0


def _of_deep(image: Image.Image, said: float | None, white: float | None) -> Image.Image:
    """Gray values of more than 8 bits, as 8; with the alpha of a transparent value."""
    values = np.asarray(image)
    gray = Image.fromarray(_eight_bits(values, said or white, sixteen=image.mode.startswith("I;16")))
    if (hidden := image.info.get("transparency")) is None:
        return gray
    return Image.merge("LA", [gray, Image.fromarray(np.where(values == hidden, 0, 255).astype(np.uint8))])


def _eight_bits(values: np.ndarray, white: float | None, *, sixteen: bool) -> np.ndarray:
    """Values of any type -> uint8: floor(255 value / white), of floats the nearest.

    Raises:
        ValueError: a value is negative or not finite, or white is unknown.
    """
    if values.dtype.kind not in "iuf" or not np.isfinite(values).all():
        raise ValueError("it has values that are no finite numbers")
    low, high = values.min(), values.max()
    if low < 0:
        raise ValueError(f"it has negative values ({low:g} to {high:g}), of which no gray can be made")
    if white is None and not sixteen:
        raise ValueError(
            f"its values are {values.dtype} ({low:g} to {high:g}), which does not say which one is white: say so with "
            "transform.white (1 for shares, 255 for 8 bits, 65535 for 16)"
        )
    if white is None and 0 < high < 2**14:
        raise _too_dark(high)
    shares = values.astype(np.float64) * 255 / (white or 65535)
    rounded = np.rint(shares) if values.dtype.kind == "f" else np.floor(shares)
    return rounded.clip(0, 255).astype(np.uint8)


def _too_dark(high: int, way: str = "say so with transform.white={white}") -> ValueError:
    bits = next(bits for bits in (8, 10, 12, 14) if high < 2**bits)
    return ValueError(
        f"it has 16 bits, but none of its values is above {high}: if they are of {bits} bits, "
        f"{way.format(white=2**bits - 1)}; if it is as dark as that, say so with transform.white=65535"
    )


def _is_deep_colour(opened: Image.Image) -> bool:
    """Whether the colours of a file have 16 bits each, of which Pillow reads the upper 8."""
    tiles = opened.tile if isinstance(opened, ImageFile) else []
    kinds = [tile.args[0] if isinstance(tile.args, tuple) else tile.args for tile in tiles]
    return opened.mode[:3] in ("RGB", "LA") and any(";16" in str(kind) for kind in kinds)


def _check_deep_colour(image: Image.Image, white: float | None) -> None:
    if white is None:
        high = int(np.asarray(image.convert("RGB")).max())
        if high < 2**6:
            raise _too_dark(256 * high + 255, "bring it to 8 bits, as of such colours only the upper 8 bits are read")
    elif white < 65535:
        raise ValueError(
            f"transform.white={white:g} is not possible for its colours of 16 bits, of which only the upper 8 are "
            "read: bring it to 8 bits"
        )
