"""Decoding, against pixels by hand and Pillow's parts."""

import io
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image

from dml.data.decode import Decode, load_image

RGB = np.random.default_rng(0).integers(0, 256, (6, 9, 3)).astype(np.uint8)
GRAY = RGB[..., 0]


def test_arrays_become_rgb():
    assert np.array_equal(np.asarray(load_image(RGB)), RGB)
    image = load_image(GRAY)
    assert image.mode == "RGB" and np.array_equal(np.asarray(image), np.stack([GRAY] * 3, axis=2))


def save(image, path, **options):
    image.save(path, **options)
    return path


def test_grayscale(tmp_path):
    for path in (save(Image.fromarray(GRAY), tmp_path / "l.png"), save(Image.fromarray(GRAY), tmp_path / "l.pgm")):
        assert np.array_equal(np.asarray(load_image(path)), np.stack([GRAY] * 3, axis=2))
    alpha = Image.merge("LA", [Image.fromarray(GRAY), Image.fromarray(GRAY[::-1].copy())])
    assert np.array_equal(np.asarray(load_image(save(alpha, tmp_path / "la.png"))), np.stack([GRAY] * 3, axis=2))
    bits = load_image(save(Image.fromarray(GRAY > 99), tmp_path / "1.png"))
    assert np.array_equal(np.asarray(bits)[..., 1], np.where(GRAY > 99, 255, 0))


def test_rgb_and_its_alpha(tmp_path):
    assert np.array_equal(np.asarray(load_image(save(Image.fromarray(RGB), tmp_path / "rgb.png"))), RGB)
    rgba = np.concatenate([RGB, GRAY[..., None] // 2 + 100], axis=2)
    image = load_image(save(Image.fromarray(rgba), tmp_path / "rgba.png"))
    assert image.mode == "RGB" and np.array_equal(np.asarray(image), RGB)


def test_cmyk(tmp_path):
    # Cyan 255 and no other ink is RGB (0, 255, 255); black 155 alone is gray 100.
    ink = np.zeros((16, 16, 4), dtype=np.uint8)
    ink[:, :8, 0], ink[:, 8:, 3] = 255, 155
    cmyk = Image.frombytes("CMYK", (16, 16), ink.tobytes())
    for path in (save(cmyk, tmp_path / "x.tif"), save(cmyk, tmp_path / "x.jpg", quality=100, subsampling=0)):
        with Image.open(path) as stored:
            assert stored.mode == "CMYK"
        image = np.asarray(load_image(path)).astype(int)
        assert image.shape == (16, 16, 3)
        assert np.abs(image[8, 3] - (0, 255, 255)).max() <= 3 and np.abs(image[8, 12] - 100).max() <= 3


def test_palette_with_transparency(tmp_path):
    image = Image.fromarray((GRAY % 4).astype(np.uint8)).convert("P")
    palette = np.array([[255, 0, 0], [0, 200, 0], [0, 0, 150], [9, 8, 7]], dtype=np.uint8)
    image.putpalette(palette.flatten().tolist())
    for options in ({"transparency": 1}, {"transparency": bytes([0, 128, 255, 7])}):
        path = save(image, tmp_path / "p.png", **options)
        with Image.open(path) as stored:
            assert stored.mode == "P" and "transparency" in stored.info
        loaded = load_image(path)
        assert loaded.mode == "RGB" and np.array_equal(np.asarray(loaded), palette[GRAY % 4])


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_sixteen_bits_are_scaled_to_eight(tmp_path, suffix):
    deep = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    image = np.asarray(load_image(save(Image.fromarray(deep), tmp_path / f"deep.{suffix}"))).astype(int)
    assert image.shape == (8, 8, 3)
    assert np.abs(image - deep[..., None] / 257).max() <= 1


# EXIF orientation -> how the stored pixels have to be turned.
UPRIGHT = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: x[::-1, ::-1].transpose(1, 0, 2),
    8: lambda x: np.rot90(x, 1),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_images_are_turned_upright(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(Image.fromarray(RGB), tmp_path / "turned.png", exif=exif)
    assert np.array_equal(np.asarray(load_image(path)), UPRIGHT[orientation](RGB))
    path = save(Image.fromarray(RGB), tmp_path / "turned.jpg", exif=exif, quality=100, subsampling=0)
    assert np.abs(np.asarray(load_image(path)).astype(int) - UPRIGHT[orientation](RGB)).max() < 30


FORMATS = ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"]


@pytest.mark.parametrize("name", FORMATS)
def test_truncated_files_are_refused_by_their_path(tmp_path, name):
    buffer = io.BytesIO()
    photo = np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(np.uint8)
    Image.fromarray(photo).save(buffer, name)
    content = buffer.getvalue()
    path = tmp_path / f"x.{name.lower()}"
    for length in (0, 1, 5, 20, len(content) // 10, len(content) // 2, len(content) * 9 // 10):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=str(path)):
            load_image(path)


DAMAGED = {
    "x.txt": b"no image at all",
    "x.jpg": b"<html>not found</html>",
    "x.png": b"\x89PNG\r\n\x1a\n" + bytes(60),
    # A length that is no number: Pillow's own ValueError does not say which file.
    "x.ppm": b"P6 4 4 2x5\n" + bytes(48),
    # A good header, data that does not unpack.
    "y.png": b"\x89PNG\r\n\x1a\n"
    + b"".join(
        len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")
        for kind, data in [
            (b"IHDR", bytes([0, 0, 0, 4, 0, 0, 0, 4, 8, 2, 0, 0, 0])),
            (b"IDAT", b"junk"),
            (b"IEND", b""),
        ]
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_files_that_are_no_images_are_refused_by_their_path(tmp_path, name):
    (tmp_path / name).write_bytes(DAMAGED[name])
    with pytest.raises(ValueError, match=str(tmp_path / name)):
        load_image(tmp_path / name)


def test_exif_that_is_damaged_is_refused_by_its_path(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.ImageDescription], exif[ExifTags.Base.Orientation] = "a" * 25, 6
    Image.new("RGB", (8, 8)).save(tmp_path / "image.jpg", exif=exif.tobytes())
    content = bytearray((tmp_path / "image.jpg").read_bytes())
    content[content.index(b"Exif") + 17] = 0  # the type of its first tag
    (tmp_path / "image.jpg").write_bytes(content)
    with pytest.raises(ValueError, match=f"{tmp_path / 'image.jpg'} cannot be read"):
        load_image(tmp_path / "image.jpg")


def test_missing_files_and_folders_are_refused_by_their_path(tmp_path):
    for path in (tmp_path / "none.png", tmp_path):
        with pytest.raises(ValueError, match=str(path)):
            load_image(path)


SMOOTH = np.asarray(Image.fromarray(RGB).resize((1333, 1000), Image.Resampling.BICUBIC))


def pixels(tensor):
    return tensor.permute(1, 2, 0).numpy()


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("side", ["larger", "shorter", "both"])
def test_a_large_jpeg_is_decoded_small_and_looks_the_same(tmp_path, monkeypatch, side, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(Image.fromarray(SMOOTH), tmp_path / "x.jpg", exif=exif, quality=90)
    whole = np.asarray(load_image(path))
    sizes = []
    resize = Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda *args: sizes.append(args[0].size) or resize(*args))
    found, expected = (pixels(Decode(100, side)(image)).astype(int) for image in (path, whole))
    difference = np.abs(found - expected)
    assert found.shape == expected.shape and difference.max() <= 8 and difference.mean() < 1
    assert max(sizes[0]) < 1333 / 2 and min(sizes[0]) >= 200 and max(sizes[1]) == 1333


def test_what_is_not_much_too_large_is_decoded_whole(tmp_path):
    path = save(Image.fromarray(SMOOTH[:390, :390]), tmp_path / "x.jpg")
    assert np.array_equal(pixels(Decode(100)(path)), pixels(Decode(100)(np.asarray(load_image(path)))))


def test_a_box_is_cut_out_at_full_size(tmp_path):
    path = save(Image.fromarray(SMOOTH), tmp_path / "x.jpg")
    cut = np.asarray(load_image(path))[100:700, 30:930]
    assert np.array_equal(pixels(Decode(90)(path, (30, 100, 930, 700))), pixels(Decode(90)(cut)))


def test_decoding_alone_changes_no_pixel_and_keeps_them_interleaved():
    tensor = Decode()(RGB)
    assert tensor.shape == (3, 6, 9) and tensor.stride() == (1, 27, 3) and np.array_equal(pixels(tensor), RGB)
