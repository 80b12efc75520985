"""Image transforms: decoded image, uint8 [3, h, w] -> uint8 [3, size, size]. Normalisation is the network's."""

from collections.abc import Sequence
from typing import Annotated, Literal, get_args

import numpy as np
import torch
from annotated_types import Ge, Gt, Interval
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2

from dml.data.decode import Decode, Interpolation

Pixels = Annotated[int, Ge(1)]
Side = Literal["larger", "shorter", "both"]
Crop = Literal["random", "random_resized", "center"]


class Transforms:
    """The transforms of an experiment: `decode` is the same every time, then `train`, at random, or `test`.

    A crop is a view and a mirror image one copy, so that reading from a cache costs little more than copying the crop.
    The random draws are those of torchvision's v2.RandomCrop and v2.RandomHorizontalFlip.

    Attributes:
        draws_globally: `train` uses torch's global generator for a while, also where it is given another, as
            torchvision's transforms know no other: not to be called by a thread beside others.

    Args:
        size: side of the square that the network sees, in pixels.
        resize: to how many pixels the side that `resize_side` names is brought first.
        resize_side: larger (the paper: "resized to 256 pixels at their larger dimension"), shorter (usual
            elsewhere), or both (squash to a square).
        interpolation: how images are resized.
        train_crop: random (the paper), random_resized (8 % to 100 % of the area, without resizing before; usual
            elsewhere), or center.
        flip: mirror horizontally with probability 1/2 in training.
        degrees, translate, scale: random rotation in +-degrees, shift in +-share of the side and zoom in +-share,
            in training; 0 leaves each out.
        augment: what else is done to a training image, in turn: modules that take and give uint8 [3, size, size], such
            as torchvision's v2.ColorJitter.
        fill: gray value (0 to 255) of what lies outside of the image, where the crop is larger than it, and of what is
            transparent.
        white: value that becomes 255, of images with more than 8 bits; None: what the kind of file says, as far as it
            does (decode.py).
        ten_crop: in test, embed the four corners, the centre and their mirror images, and average (the boxed plus
            of the paper's Table II): the transform gives [10, 3, size, size].
        crop_to_box: cut images to their bounding box first, in training and in test (the box of Table II).

    Raises:
        ValueError: a choice is none of the listed ones, a number is out of range, or a module of `augment` gives
            something else than it was given; names the config key.
    """

    def __init__(
        self,
        *,
        size: Pixels,
        resize: Pixels,
        resize_side: Side = "larger",
        interpolation: Interpolation = "bilinear",
        train_crop: Crop = "random",
        flip: bool = True,
        degrees: Annotated[float, Interval(ge=0, le=180)] = 0.0,
        translate: Annotated[float, Interval(ge=0, le=1)] = 0.0,
        scale: Annotated[float, Interval(ge=0, le=0.99)] = 0.0,
        augment: Sequence[nn.Module] = (),
        fill: Annotated[int, Interval(ge=0, le=255)] = 0,
        white: Annotated[float, Gt(0)] | None = None,
        ten_crop: bool = False,
        crop_to_box: bool = False,
    ) -> None:
        for key, value, choices in (
            ("resize_side", resize_side, get_args(Side)),
            ("interpolation", interpolation, get_args(Interpolation)),
            ("train_crop", train_crop, get_args(Crop)),
        ):
            if value not in choices:
                raise ValueError(f"transform.{key}={value} is not possible: it must be one of {', '.join(choices)}")
        for key, pixels in (("size", size), ("resize", resize)):
            if pixels < 1:
                raise ValueError(f"transform.{key}={pixels} is not possible: it must be greater than 0")
        for key, amount, highest in (("degrees", degrees, 180), ("translate", translate, 1), ("scale", scale, 0.99)):
            if not 0 <= amount <= highest:
                raise ValueError(f"transform.{key}={amount} is not possible: it must be 0 to {highest}")
        if not 0 <= fill <= 255:
            raise ValueError(f"transform.fill={fill} is not possible: it must be 0 to 255")
        if white is not None and not 0 < white < float("inf"):
            raise ValueError(f"transform.white={white} is not possible: it must be greater than 0, or null")
        self.size, self.fill, self.train_crop, self.flip = size, fill, train_crop, flip
        self.ten_crop, self.crop_to_box = ten_crop, crop_to_box
        self._resize = Decode(resize, resize_side, fill, white, interpolation)
        # A random part of the image at full size: then only decoding is the same every time.
        self.decode = Decode(fill=fill, white=white) if train_crop == "random_resized" else self._resize
        self._random_resized = v2.RandomResizedCrop(size, interpolation=v2.InterpolationMode(interpolation))
        self._affine = v2.RandomAffine(
            degrees,
            translate=(translate, translate),
            scale=(1 - scale, 1 + scale),
            interpolation=v2.InterpolationMode.BILINEAR,
            fill=fill,
        )
        self._moves = bool(degrees or translate or scale)
        self._augment = tuple(augment)
        self.draws_globally = self._moves or train_crop == "random_resized" or bool(self._augment)
        for i, module in enumerate(self._augment):
            _check_augment(f"transform.augment.{i}", module, size)

    def train(self, image: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A training image [3, h, w] from `decode` -> [3, size, size], at random; None: by the global generator."""
        if generator is None or not self.draws_globally:
            return self._train(image, generator)
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(generator.get_state())
            return self._train(image, None)

    def _train(self, image: Tensor, generator: torch.Generator | None) -> Tensor:
        if self.train_crop == "random_resized":
            image = _from_pillow(self._random_resized(_to_pillow(image)))
        elif self.train_crop == "random":
            image = self._random_crop(image, generator)
        else:
            image = self._center(image, self.size, self.size)
        if self.flip and torch.rand(1, generator=generator) < 0.5:
            image = image.flip(2)
        image = _from_pillow(self._affine(_to_pillow(image))) if self._moves else image
        for module in self._augment:
            image = module(image)
        return image

    def test(self, image: Tensor) -> Tensor:
        """A test image [3, h, w] from `decode` -> [3, size, size], or [10, 3, size, size]; the same every time."""
        if self.decode.resize is None:
            image = self._resize(image.movedim(0, 2).numpy())
        if not self.ten_crop:
            return self._center(image, self.size, self.size)
        large = self._center(image, max(self.size, image.shape[1]), max(self.size, image.shape[2]))
        return torch.stack(v2.functional.ten_crop(large, [self.size, self.size]))

    def _random_crop(self, image: Tensor, generator: torch.Generator | None) -> Tensor:
        corner = []
        for length in image.shape[1:]:
            # Where the image is too small, it lies anywhere in the crop, whole.
            low, high = min(0, length - self.size), max(0, length - self.size)
            drawn = int(torch.randint(0, high - low + 1, size=(), generator=generator)) if high > low else 0
            corner.append(low + drawn)
        return self._window(image, corner[0], corner[1], self.size, self.size)

    def _center(self, image: Tensor, height: int, width: int) -> Tensor:
        missing = (height - image.shape[1], width - image.shape[2])
        top, left = (-(m // 2) if m > 0 else round(-m / 2) for m in missing)
        return self._window(image, top, left, height, width)

    def _window(self, image: Tensor, top: int, left: int, height: int, width: int) -> Tensor:
        """The window whose corner is at (top, left), which may lie outside; there is the fill."""
        bottom, right = top + height, left + width
        if top >= 0 and left >= 0 and bottom <= image.shape[1] and right <= image.shape[2]:
            return image[:, top:bottom, left:right]
        window = torch.full((height, width, 3), self.fill, dtype=torch.uint8).movedim(2, 0)
        inside = image[:, max(0, top) : bottom, max(0, left) : right]
        y, x = max(0, -top), max(0, -left)
        window[:, y : y + inside.shape[1], x : x + inside.shape[2]] = inside
        return window


def _check_augment(key: str, module: nn.Module, size: int) -> None:
    """Try a module on one image, drawing nothing from the generator of whoever makes the transforms."""
    image = torch.zeros(3, size, size, dtype=torch.uint8, device="cpu")
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        try:
            found = module(image)
        except (RuntimeError, TypeError, ValueError) as error:
            raise ValueError(
                f"{key}={type(module).__name__} fails on an image: {str(error).splitlines()[0]}"
            ) from error
    if not isinstance(found, Tensor) or found.dtype != torch.uint8 or found.shape != image.shape:
        what = f"{found.dtype} {list(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(
            f"{key}={type(module).__name__} gives {what}: it must give torch.uint8 {list(image.shape)}, as it was "
            "given (the network scales by itself: leave ToDtype and Normalize out)"
        )


def _to_pillow(image: Tensor) -> Image.Image:
    return Image.fromarray(image.movedim(0, 2).numpy())


def _from_pillow(image: Image.Image) -> Tensor:
    return Decode()(np.asarray(image))
