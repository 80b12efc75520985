"""Decoding, against pixels by hand and Pillow's parts."""

import io
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image

from dml.data.decode import Decode, _bits_of_jpeg2000, load_image

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
    bits = load_image(save(Image.fromarray(GRAY > 99), tmp_path / "1.png"))
    assert np.array_equal(np.asarray(bits)[..., 1], np.where(GRAY > 99, 255, 0))


def test_rgb(tmp_path):
    assert np.array_equal(np.asarray(load_image(save(Image.fromarray(RGB), tmp_path / "rgb.png"))), RGB)


def on_ground(colours, alpha, fill):
    """Colours [h, w, 3] on a gray ground, by alpha [h, w] of 255."""
    shares = alpha[..., None].astype(np.float64) / 255
    return colours * shares + fill * (1 - shares)


ALPHA = np.random.default_rng(1).choice(np.array([0, 1, 100, 254, 255], dtype=np.uint8), GRAY.shape)


@pytest.mark.parametrize("fill", [0, 128, 255])
@pytest.mark.parametrize("suffix", ["png", "tif", "webp", "array"])
def test_what_is_transparent_shows_the_fill(tmp_path, suffix, fill):
    rgba = np.concatenate([RGB, ALPHA[..., None]], axis=2)
    if suffix == "array":
        source = rgba
    else:
        source = save(
            Image.fromarray(rgba),
            tmp_path / f"x.{suffix}",
            **{"webp": {"lossless": True, "exact": True}}.get(suffix, {}),
        )
    image = load_image(source, fill=fill)
    assert image.mode == "RGB" and np.abs(np.asarray(image) - on_ground(RGB, ALPHA, fill)).max() <= 0.51
    assert np.array_equal(np.asarray(image)[ALPHA == 255], RGB[ALPHA == 255])
    assert np.array_equal(pixels(Decode(fill=fill)(source)), np.asarray(image))


def test_gray_and_palettes_with_alpha(tmp_path):
    gray = np.stack([GRAY] * 3, axis=2)
    image = Image.merge("LA", [Image.fromarray(GRAY), Image.fromarray(ALPHA)])
    found = np.asarray(load_image(save(image, tmp_path / "la.png"), fill=200))
    assert np.abs(found - on_ground(gray, ALPHA, 200)).max() <= 0.51
    # One gray value, or one colour, that stands for transparent.
    for array, colours, hidden in ((GRAY, gray, int(GRAY[2, 3])), (RGB, RGB, tuple(RGB[2, 3].tolist()))):
        found = np.asarray(load_image(save(Image.fromarray(array), tmp_path / "t.png", transparency=hidden), fill=77))
        lost = (colours == hidden).all(axis=2)
        assert lost[2, 3] and np.array_equal(found, np.where(lost[..., None], 77, colours))
    bits = save(Image.fromarray(GRAY > 99), tmp_path / "1.png", transparency=0)
    assert np.array_equal(np.asarray(load_image(bits, fill=77))[..., 0], np.where(GRAY > 99, 255, 77))
    turned = Image.Exif()
    turned[0x0112] = 3
    path = save(Image.fromarray(GRAY), tmp_path / "e.png", transparency=int(GRAY[2, 3]), exif=turned)
    assert np.array_equal(
        np.asarray(load_image(path, fill=77))[::-1, ::-1],
        np.where(GRAY[2, 3] == GRAY, 77, GRAY)[..., None].repeat(3, 2),
    )


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
    for given, alpha in ((1, [255, 0, 255, 255]), (bytes([0, 128, 255, 7]), [0, 128, 255, 7])):
        path = save(image, tmp_path / "p.png", transparency=given)
        with Image.open(path) as stored:
            assert stored.mode == "P" and "transparency" in stored.info
        expected = on_ground(palette[GRAY % 4], np.array(alpha, dtype=np.uint8)[GRAY % 4], 90)
        assert np.abs(np.asarray(load_image(path, fill=90)) - expected).max() <= 0.51


def test_of_several_frames_the_first_is_read(tmp_path):
    others = [Image.fromarray(RGB[::-1].copy()), Image.fromarray(255 - RGB)]
    for name, options in (("x.webp", {"lossless": True}), ("x.tif", {}), ("x.png", {})):
        path = save(Image.fromarray(RGB), tmp_path / name, save_all=True, append_images=others, **options)
        with Image.open(path) as stored:
            assert stored.n_frames == 3
        assert np.array_equal(np.asarray(load_image(path)), RGB)


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_sixteen_bits_are_scaled_to_eight(tmp_path, suffix):
    deep = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    image = np.asarray(load_image(save(Image.fromarray(deep), tmp_path / f"deep.{suffix}"))).astype(int)
    assert image.shape == (8, 8, 3)
    assert np.abs(image - deep[..., None] / 257).max() <= 1


SHADES = np.linspace(0, 1, 64).reshape(8, 8)  # of white


def shades(image):
    return np.asarray(image).astype(int)[..., 0] / 255


@pytest.mark.parametrize(
    ("name", "white", "dtype"),
    [
        ("x.png", 255, np.uint16), ("x.png", 1023, np.uint16), ("x.tif", 4095, np.uint16), ("x.tif", 4095, ">u2"),
        ("x.png", 16383, np.uint16), ("x.png", 65535, np.uint16), ("x.tif", 255, np.int32), ("x.tif", 10**6, np.int32),
        ("x.tif", 1, np.float32), ("x.tif", 255, np.float32), ("x.tif", 12.5, np.float32),
        ("", 1, np.float64), ("", 255, np.int64), ("", 65535, np.uint16), ("", 255, np.float16),
    ],
)  # fmt: skip
def test_deep_images_are_scaled_by_white(tmp_path, name, white, dtype):
    values = SHADES * white
    values = (np.rint(values) if np.dtype(dtype).kind in "iu" else values).astype(dtype)
    image = save(Image.fromarray(values), tmp_path / name) if name else values
    assert np.abs(shades(load_image(image, white=white)) - SHADES).max() <= 1.01 / 255 + 0.5 / white * (white > 200)
    assert np.array_equal(pixels(Decode(white=white)(image)), np.asarray(load_image(image, white=white)))
    # What is brighter than white is white; an image of 8 bits knows its own.
    assert shades(load_image(image, white=white / 2)).max() == 1
    assert np.array_equal(np.asarray(load_image(RGB, white=white)), RGB)


def test_colours_in_memory_may_have_any_type():
    colours = np.stack([SHADES, SHADES**2, 1 - SHADES], axis=2)
    assert np.abs(np.asarray(load_image(colours, white=1)).astype(int) - 255 * colours).max() <= 0.51


@pytest.mark.parametrize(
    ("name", "values", "white", "said"),
    [
        ("x.png", (SHADES * 255).astype(np.uint16), None, r"16 bits, .* above 255: .*transform\.white=255\b"),
        ("x.tif", (SHADES * 4080).astype(np.uint16), None, r"16 bits, .* above 4080: .*12 bits.*transform\.white=4095"),
        ("x.png", (SHADES * 16383).astype(np.uint16), None, r"14 bits.*transform\.white=16383.*=65535"),
        ("x.tif", (SHADES * 255).astype(np.int32), None, r"int32 \(0 to 255\).*transform\.white"),
        ("x.tif", SHADES.astype(np.float32), None, r"float32 \(0 to 1\).*transform\.white"),
        ("x.tif", (SHADES - 0.5).astype(np.float32), 1, r"negative values \(-0\.5 to 0\.5\)"),
        ("x.tif", np.full((8, 8), np.nan, np.float32), 1, "no finite numbers"),
        ("", (SHADES * 255).astype(np.uint16), None, r"transform\.white=255\b"),
        ("", SHADES, None, r"\[8, 8\] of float64 .*transform\.white"),
        ("", np.full((8, 8), "a"), None, r"\[8, 8\] of <U1 cannot be read"),
        ("", np.zeros((3, 8, 8), np.uint8), None, r"\[3, 8, 8\] of uint8 cannot be read"),
    ],
)
def test_an_unknown_white_is_refused_and_not_guessed(tmp_path, name, values, white, said):
    image = save(Image.fromarray(values), tmp_path / name) if name else values
    with pytest.raises(ValueError, match=said) as caught:
        load_image(image, white=white)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def png_of_16_bits(path, colours):
    """Colours [h, w, 3] as a PNG of 16 bits each, which Pillow cannot write."""
    h, w, _ = colours.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in colours)
    parts = [
        (b"IHDR", w.to_bytes(4, "big") + h.to_bytes(4, "big") + bytes([16, 2, 0, 0, 0])),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")
            for kind, data in parts
        )
    )
    return path


def test_colours_of_16_bits(tmp_path):
    full = png_of_16_bits(tmp_path / "full.png", RGB.astype(np.uint16) * 257)
    assert np.array_equal(np.asarray(load_image(full)), RGB)
    for bits in (8, 12):
        path = png_of_16_bits(tmp_path / f"{bits}.png", RGB.astype(np.uint16) << (bits - 8))
        with pytest.raises(
            ValueError, match=rf"{bits}\.png cannot be read: it has 16 bits, .* bring it to 8 bits, .*white=65535"
        ):
            load_image(path)
        with pytest.raises(ValueError, match=r"transform\.white=4095 is not possible for its colours of 16 bits"):
            load_image(path, white=4095)
        assert np.array_equal(np.asarray(load_image(path, white=65535)), RGB >> (16 - bits))


def test_what_a_file_says_of_its_white_needs_nobody_to_say_it(tmp_path):
    values = np.rint(SHADES * 4095).astype(np.uint16)
    path = tmp_path / "x.pgm"
    path.write_bytes(b"P5 8 8 4095\n" + values.astype(">u2").tobytes())
    for white in (None, 255, 65535):
        assert np.abs(shades(load_image(path, white=white)) - SHADES).max() <= 1.01 / 255
    path.write_bytes(b"P5 8 8 4095\n" + (values // 16).astype(">u2").tobytes())  # as dark as that
    assert shades(load_image(path)).max() == 15 / 255


def test_jpeg2000_is_scaled_by_the_bits_that_it_says(tmp_path):
    # The white of a file of 16 bits is a guess, as elsewhere; Pillow writes no other number of bits.
    path = save(Image.fromarray((SHADES * 4095).astype(np.uint16)), tmp_path / "x.jp2")
    with pytest.raises(ValueError, match=r"none of its values is above 4095.*transform\.white=4095"):
        load_image(path)
    assert np.abs(shades(load_image(path, white=4095)) - SHADES).max() <= 1.01 / 255
    content = path.read_bytes()
    at = content.index(b"\xff\x4f\xff\x51") + 42
    assert content[at] == 15
    with Image.open(path) as opened:
        assert _bits_of_jpeg2000(opened) == 16
    path.write_bytes(content[:at] + bytes([11]) + content[at + 1 :])
    with Image.open(path) as opened:
        assert _bits_of_jpeg2000(opened) == 12


def test_a_tiff_whose_0_is_white(tmp_path):
    values = (SHADES * 65535).astype(np.uint16)
    for name, pixels in (("8.tif", (SHADES * 255).astype(np.uint8)), ("16.tif", values)):
        path = save(Image.fromarray(pixels), tmp_path / name)
        content = bytearray(path.read_bytes())
        at = content.index((262).to_bytes(2, "little") + b"\x03\x00\x01\x00\x00\x00") + 8
        assert content[at] == 1
        content[at] = 0  # PhotometricInterpretation: WhiteIsZero
        path.write_bytes(content)
        assert np.abs(shades(load_image(path)) - (1 - SHADES)).max() <= 1.01 / 255


def test_a_black_image_of_16_bits_is_black_whatever_white_is(tmp_path):
    path = save(Image.fromarray(np.zeros((8, 8), np.uint16)), tmp_path / "x.png")
    assert not np.asarray(load_image(path)).any()


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
