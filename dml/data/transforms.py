"""Image transforms: PIL RGB image -> uint8 tensor [3, size, size]. Normalisation is the network's."""

from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

Transform = Callable[[Image.Image], Tensor]


class Transforms:
    """The pair of transforms of an experiment, for training and for test.

    Args:
        size: side of the square that the network sees, in pixels.
        resize: to how many pixels the side that `resize_side` names is brought first.
        resize_side: larger (the paper: "resized to 256 pixels at their larger dimension"), shorter (usual
            elsewhere), or both (squash to a square).
        train_crop: random (the paper), random_resized (8 % to 100 % of the area, without resizing before; usual
            elsewhere), or center.
        flip: mirror horizontally with probability 1/2 in training.
        degrees, translate, scale: random rotation in +-degrees, shift in +-share of the side and zoom in +-share,
            in training; 0 leaves each out.
        fill: gray value (0 to 255) of what lies outside of the image, where the crop is larger than it.
        ten_crop: in test, embed the four corners, the centre and their mirror images, and average (the boxed plus
            of the paper's Table II): the transform gives [10, 3, size, size].
        crop_to_box: cut images to their bounding box first, in training and in test (the box of Table II).

    Raises:
        ValueError: a choice is none of the listed ones, or a number is out of range; names the config key.
    """

    def __init__(
        self,
        *,
        size: int,
        resize: int,
        resize_side: str = "larger",
        train_crop: str = "random",
        flip: bool = True,
        degrees: float = 0.0,
        translate: float = 0.0,
        scale: float = 0.0,
        fill: int = 0,
        ten_crop: bool = False,
        crop_to_box: bool = False,
    ) -> None:
        for key, value, choices in (
            ("resize_side", resize_side, ("larger", "shorter", "both")),
            ("train_crop", train_crop, ("random", "random_resized", "center")),
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
        self.size, self.resize, self.resize_side, self.fill = size, resize, resize_side, fill
        self.train_crop, self.flip = train_crop, flip
        self.degrees, self.translate, self.scale = degrees, translate, scale
        self.ten_crop, self.crop_to_box = ten_crop, crop_to_box

    def _resize(self) -> v2.Transform:
        if self.resize_side == "larger":
            return _ResizeLarger(self.resize)
        return v2.Resize(self.resize if self.resize_side == "shorter" else [self.resize, self.resize])

    def train(self) -> Transform:
        """The transform of training images, random."""
        steps: list[v2.Transform] = []
        if self.train_crop == "random_resized":
            steps.append(v2.RandomResizedCrop(self.size))
        else:
            steps.append(self._resize())
            if self.train_crop == "random":
                steps.append(v2.RandomCrop(self.size, pad_if_needed=True, fill=self.fill))
            else:
                steps.append(_CenterCrop(self.size, self.fill))
        if self.flip:
            steps.append(v2.RandomHorizontalFlip())
        if self.degrees or self.translate or self.scale:
            steps.append(
                v2.RandomAffine(
                    self.degrees,
                    translate=(self.translate, self.translate),
                    scale=(1 - self.scale, 1 + self.scale),
                    interpolation=v2.InterpolationMode.BILINEAR,
                    fill=self.fill,
                )
            )
        return v2.Compose([*steps, v2.PILToTensor()])

    def test(self) -> Transform:
        """The transform of test images, the same every time."""
        if self.ten_crop:
            pad = _PadTo((self.size, self.size), self.fill)
            return v2.Compose([self._resize(), pad, v2.TenCrop(self.size), _stack])
        return v2.Compose([self._resize(), _CenterCrop(self.size, self.fill), v2.PILToTensor()])


class _ResizeLarger(v2.Transform):
    """Bring the larger side to a size; the other follows, to one pixel at least (torchvision fails on thin images)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def transform(self, inpt: Image.Image, params: object) -> Image.Image:
        larger = max(inpt.size)
        height, width = (max(1, int(self.size * side / larger)) for side in (inpt.height, inpt.width))
        return v2.functional.resize(inpt, [height, width])


class _PadTo(v2.Transform):
    """Pad an image evenly to at least the given size (height, width)."""

    def __init__(self, size: tuple[int, int] | list[int], fill: int) -> None:
        super().__init__()
        self.size, self.fill = size, fill

    def transform(self, inpt: Image.Image, params: object) -> Image.Image:
        missing_x, missing_y = max(0, self.size[1] - inpt.width), max(0, self.size[0] - inpt.height)
        left, top = missing_x // 2, missing_y // 2
        return v2.functional.pad(inpt, [left, top, missing_x - left, missing_y - top], fill=[float(self.fill)] * 3)


class _CenterCrop(v2.Transform):
    """The centre of an image, padded with a gray of choice where it is too small (torchvision pads with black)."""

    def __init__(self, size: int, fill: int) -> None:
        super().__init__()
        self.size, self.pad = size, _PadTo((size, size), fill)

    def transform(self, inpt: Image.Image, params: object) -> Image.Image:
        return v2.functional.center_crop(self.pad.transform(inpt, params), [self.size, self.size])


def _stack(crops: tuple[Image.Image, ...]) -> Tensor:
    return torch.stack([v2.functional.pil_to_tensor(crop) for crop in crops])
