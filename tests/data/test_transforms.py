"""Transforms, against torchvision's parts and pixels by hand."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from dml.data.transforms import Transforms


def photo(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8))


def in_training(transforms):
    return lambda image: transforms.train(transforms.decode(np.asarray(image)))


def in_test(transforms):
    return lambda image: transforms.test(transforms.decode(np.asarray(image)))


def pixels(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


SHAPES = [(40, 30), (30, 40), (14, 90), (16, 16), (3, 3)]
OPTIONS = pytest.mark.parametrize(
    "options",
    [
        *(
            {"train_crop": crop, "resize_side": side}
            for crop in ("random", "random_resized", "center")
            for side in ("larger", "shorter", "both")
        ),
        {"flip": False},
        {"degrees": 20.0},
        {"translate": 0.2},
        {"scale": 0.3},
        {"degrees": 20.0, "translate": 0.2, "scale": 0.3, "fill": 7},
        {"resize": 8},  # smaller than the crop
        {"resize": 8, "resize_side": "shorter", "fill": 255},
    ],
    ids=str,
)


@OPTIONS
@pytest.mark.parametrize("shape", SHAPES)
def test_every_option_gives_a_square_of_bytes(options, shape):
    transforms = Transforms(**{"size": 16, "resize": 20, **options})
    ten = Transforms(**{"size": 16, "resize": 20, **options, "ten_crop": True})
    for transform, expected in ((in_training(transforms), (3, 16, 16)), (in_test(transforms), (3, 16, 16)),
                                (in_training(ten), (3, 16, 16)), (in_test(ten), (10, 3, 16, 16))):  # fmt: skip
        out = transform(photo(*shape))
        assert out.shape == expected and out.dtype == torch.uint8


def torchvisions(size, resize, resize_side="larger", train_crop="random", flip=True, degrees=0.0, translate=0.0,
                 scale=0.0, fill=0):  # fmt: skip
    """The same in training, put together from torchvision's parts on PIL images."""

    def resized(image):
        larger = max(image.size)
        sizes = {
            "larger": [max(1, int(resize * side / larger)) for side in (image.height, image.width)],
            "shorter": [resize],
            "both": [resize, resize],
        }
        return v2.functional.resize(image, sizes[resize_side])

    def padded(image):
        missing = [max(0, size - side) for side in image.size]
        before = [m // 2 for m in missing]
        return v2.functional.pad(image, [*before, *(m - b for m, b in zip(missing, before, strict=True))], fill=fill)

    crops = {
        "random": [resized, v2.RandomCrop(size, pad_if_needed=True, fill=fill)],
        "random_resized": [v2.RandomResizedCrop(size)],
        "center": [resized, padded, v2.CenterCrop(size)],
    }
    steps = [*crops[train_crop], *([v2.RandomHorizontalFlip()] if flip else [])]
    if degrees or translate or scale:
        steps.append(v2.RandomAffine(degrees, (translate, translate), (1 - scale, 1 + scale), fill=fill,
                                     interpolation=v2.InterpolationMode.BILINEAR))  # fmt: skip
    return v2.Compose([*steps, v2.PILToTensor()])


@OPTIONS
@pytest.mark.parametrize("shape", SHAPES)
def test_same_draws_and_same_pixels_as_torchvision(options, shape):
    options = {"size": 16, "resize": 20, **options}
    ours, theirs = in_training(Transforms(**options)), torchvisions(**options)
    image = photo(*shape)
    for seed in range(6):
        outs = []
        for transform in (ours, theirs):
            torch.manual_seed(seed)
            outs.append((transform(image), torch.rand(1)))  # as many draws, too
        assert torch.equal(outs[0][0], outs[1][0]) and torch.equal(outs[0][1], outs[1][1])


@pytest.mark.parametrize(
    ("side", "shape", "resized"),
    [
        ("larger", (40, 20), (20, 10)),
        ("larger", (20, 40), (10, 20)),
        ("larger", (10, 5), (20, 10)),  # small images grow
        ("shorter", (40, 20), (40, 20)),
        ("shorter", (10, 5), (40, 20)),
        ("both", (40, 30), (20, 20)),
        ("both", (5, 7), (20, 20)),
    ],
)
def test_resize_side(side, shape, resized):
    image = photo(*shape)
    expected = pixels(image.resize(resized, Image.Resampling.BILINEAR))
    # With a crop as large as the longest side, nothing is cut off; the rest is padding.
    size = max(resized)
    out = in_test(Transforms(size=size, resize=20, resize_side=side, fill=99))(image)
    left, top = (size - resized[0]) // 2, (size - resized[1]) // 2
    inside = out[:, top : top + resized[1], left : left + resized[0]]
    assert torch.equal(inside, expected)
    rest = torch.ones(size, size, dtype=torch.bool)
    rest[top : top + resized[1], left : left + resized[0]] = False
    assert (out[:, rest] == 99).all()


def test_center_crop_by_hand():
    image = photo(10, 10)
    out = Transforms(size=4, resize=10, train_crop="center", flip=False)
    for transform in (in_test(out), in_training(out)):
        assert torch.equal(transform(image), pixels(image)[:, 3:7, 3:7])


@pytest.mark.parametrize("fill", [0, 128, 255])
def test_center_crop_pads_evenly_with_the_fill(fill):
    # 8 x 4 in a 11 x 11: three above and four below, one at the left and two at the right.
    image = photo(8, 4)
    expected = torch.full((3, 11, 11), fill, dtype=torch.uint8)
    expected[:, 3:7, 1:9] = pixels(image)
    transforms = Transforms(size=11, resize=8, train_crop="center", flip=False, fill=fill)
    assert torch.equal(in_test(transforms)(image), expected)
    assert torch.equal(in_training(transforms)(image), expected)


def test_center_crop_pads_one_side_and_cuts_the_other():
    image = photo(10, 2)
    expected = torch.full((3, 4, 4), 5, dtype=torch.uint8)
    expected[:, 1:3] = pixels(image)[:, :, 3:7]
    assert torch.equal(in_test(Transforms(size=4, resize=10, fill=5))(image), expected)


def windows(image, size):
    x = pixels(image)
    return [
        x[:, i : i + size, j : j + size] for i in range(x.shape[1] - size + 1) for j in range(x.shape[2] - size + 1)
    ]


def test_random_crop_takes_every_window_and_nothing_else():
    image = photo(8, 8)
    train = in_training(Transforms(size=6, resize=8, flip=False))
    torch.manual_seed(0)
    found = [train(image) for _ in range(150)]
    places = windows(image, 6)
    hit = [sum(torch.equal(crop, place) for crop in found) for place in places]
    assert sum(hit) == 150 and min(hit) > 0


@pytest.mark.parametrize("fill", [0, 77])
def test_random_crop_pads_with_the_fill(fill):
    image = Image.new("RGB", (8, 4), (200, 100, 50))
    train = in_training(Transforms(size=8, resize=8, flip=False, fill=fill))
    torch.manual_seed(0)
    tops = set()
    for _ in range(60):
        out = train(image)
        inside = (out == torch.tensor([200, 100, 50], dtype=torch.uint8).view(3, 1, 1)).all(dim=0)
        assert (out[:, ~inside] == fill).all()
        rows = inside.all(dim=1).nonzero().flatten().tolist()
        assert inside.sum() == 8 * len(rows) and rows == list(range(rows[0], rows[0] + 4))
        tops.add(rows[0])
    assert tops == {0, 1, 2, 3, 4}


def test_flip_mirrors_half_of_the_images():
    image = photo(6, 6)
    plain, mirrored = pixels(image), pixels(image).flip(2)
    torch.manual_seed(0)
    train = in_training(Transforms(size=6, resize=6))
    outs = [train(image) for _ in range(200)]
    flips = sum(torch.equal(out, mirrored) for out in outs)
    assert flips + sum(torch.equal(out, plain) for out in outs) == 200
    assert 65 < flips < 135  # 100 expected, deviation 7
    unflipped = in_training(Transforms(size=6, resize=6, flip=False))
    assert all(torch.equal(unflipped(image), plain) for _ in range(20))


def test_random_resized_crop_ignores_the_resize():
    # Of a gradient, crops of 8 % to 100 % of the area span at least a quarter of it and at most all.
    ramp = np.tile(np.linspace(0, 255, 64).astype(np.uint8)[None, :, None], (64, 1, 3))
    torch.manual_seed(0)
    train = in_training(Transforms(size=16, resize=1, train_crop="random_resized", flip=False))
    spans = []
    for _ in range(100):
        row = train(Image.fromarray(ramp))[0, 8].int()
        spans.append(int(row[-1] - row[0]))
    assert min(spans) > 30 and max(spans) > 200 and len(set(spans)) > 20


def test_random_changes_are_torchvisions():
    # Same random draws, same pixels: the options reach RandomAffine unchanged.
    image = photo(12, 12)
    moved = {"degrees": 30.0, "translate": 0.1, "scale": 0.2, "fill": 50}
    train = in_training(Transforms(size=12, resize=12, train_crop="center", flip=False, **moved))
    affine = v2.RandomAffine(30.0, (0.1, 0.1), (0.8, 1.2), interpolation=v2.InterpolationMode.BILINEAR, fill=50)
    for seed in range(5):
        torch.manual_seed(seed)
        out = train(image)
        torch.manual_seed(seed)
        assert torch.equal(out, pixels(affine(image)))


@pytest.mark.parametrize("options", [{"degrees": 20.0}, {"translate": 0.3}, {"scale": 0.3}])
def test_each_random_change_acts_alone(options):
    image = photo(12, 12)
    train = in_training(Transforms(size=12, resize=12, train_crop="center", flip=False, **options))
    torch.manual_seed(0)
    outs = [train(image) for _ in range(5)]
    assert all(not torch.equal(out, pixels(image)) for out in outs)
    assert len({tuple(out.flatten().tolist()) for out in outs}) == 5


def test_test_transform_is_the_same_every_time_and_has_no_random_change():
    transforms = Transforms(size=8, resize=12, degrees=30.0, translate=0.2, scale=0.2)
    image = photo(20, 14)
    state = torch.get_rng_state()
    first = in_test(transforms)(image)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(in_test(transforms)(image), first)
    assert torch.equal(in_test(Transforms(size=8, resize=12))(image), first)


@pytest.mark.parametrize(("shape", "size"), [((12, 12), 8), ((12, 9), 9), ((12, 6), 9), ((12, 5), 16)])
def test_ten_crop_is_torchvisions_of_the_padded_image(shape, size):
    image = photo(*shape)
    x = pixels(image)
    height, width = max(size, shape[1]), max(size, shape[0])
    padded = torch.full((3, height, width), 33, dtype=torch.uint8)
    top, left = (height - shape[1]) // 2, (width - shape[0]) // 2
    padded[:, top : top + shape[1], left : left + shape[0]] = x
    expected = torch.stack(v2.functional.ten_crop(padded, [size, size]))
    out = in_test(Transforms(size=size, resize=12, fill=33, ten_crop=True))(image)
    assert torch.equal(out, expected)
    # By hand: two corners, and the mirror image of the first.
    assert torch.equal(out[0], padded[:, :size, :size])
    assert torch.equal(out[3], padded[:, height - size :, width - size :])
    assert torch.equal(out[5], out[0].flip(2)) or torch.equal(out[5], padded.flip(2)[:, :size, :size])


def test_ten_crop_leaves_training_alone():
    image = photo(20, 14)
    outs = []
    for ten_crop in (False, True):
        torch.manual_seed(3)
        outs.append(in_training(Transforms(size=8, resize=12, ten_crop=ten_crop))(image))
    assert torch.equal(*outs)


@pytest.mark.parametrize("shape", [(300, 1), (1, 300)])
@pytest.mark.parametrize("side", ["larger", "shorter", "both"])
def test_images_thinner_than_a_pixel_after_resizing_are_taken(shape, side):
    transforms = Transforms(size=8, resize=16, resize_side=side)
    assert in_test(transforms)(photo(*shape)).shape == in_training(transforms)(photo(*shape)).shape == (3, 8, 8)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"resize_side": "longer"}, r"transform\.resize_side=longer\b.*larger, shorter, both"),
        ({"train_crop": "centre"}, r"transform\.train_crop=centre\b.*random, random_resized, center"),
        ({"size": 0}, r"transform\.size=0\b"),
        ({"size": -4}, r"transform\.size=-4\b"),
        ({"resize": 0}, r"transform\.resize=0\b"),
        ({"resize": -1}, r"transform\.resize=-1\b"),
    ],
)
def test_impossible_options_are_refused(options, key):
    with pytest.raises(ValueError, match=key):
        Transforms(**{"size": 8, "resize": 10, **options})


def test_arguments_have_names():
    with pytest.raises(TypeError):
        Transforms(8, 10)


def test_augment_follows_the_seed_of_the_image_and_leaves_the_generator_alone():
    image = torch.randint(0, 256, (3, 12, 12), dtype=torch.uint8)
    jitter, erase = v2.ColorJitter(brightness=0.5, hue=0.2), v2.RandomErasing(p=1.0, value=7)
    transforms = Transforms(size=8, resize=12, flip=False, train_crop="center", augment=[jitter, erase])
    assert transforms.draws_globally
    before = torch.get_rng_state()
    first, again, other = (transforms.train(image, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(erase(jitter(image[:, 2:10, 2:10])), first)  # in turn, by torch's draws
    assert torch.equal(transforms.test(image), image[:, 2:10, 2:10])


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (v2.ToDtype(torch.float32, scale=True), r"^transform\.augment\.1=ToDtype gives torch\.float32 \[3, 8, 8\]"),
        (v2.Resize(4), r"^transform\.augment\.1=Resize gives torch\.uint8 \[3, 4, 4\]: it must give"),
        (v2.Normalize([0.5] * 3, [0.5] * 3), r"^transform\.augment\.1=Normalize fails on an image: "),
    ],
)
def test_augment_that_gives_something_else_is_refused(module, said):
    with pytest.raises(ValueError, match=said):
        Transforms(size=8, resize=12, augment=[v2.RandomGrayscale(), module])
