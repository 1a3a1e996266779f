"""Files, arrays and tensors of every kind become 8-bit RGB, or are refused by name."""

from __future__ import annotations

import contextlib
import io
import os
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from siamcam_lib.datasets import images
from siamcam_lib.errors import DataNotFoundError, ImageError

RED, BLUE = (255, 0, 0), (0, 0, 255)


def corner_picture() -> Image.Image:
    """6 × 4, blue with a red top left corner: shows which way up it is."""
    picture = Image.new("RGB", (6, 4), BLUE)
    picture.paste(RED, (0, 0, 2, 2))
    return picture


def encoded(picture: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def near(pixel: tuple[int, ...], wanted: tuple[int, ...], tolerance: int = 3) -> bool:
    return all(abs(a - b) <= tolerance for a, b in zip(pixel, wanted, strict=True))


# --- modes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP", "GIF", "PPM", "TGA"])
def test_reads_the_same_picture_from_every_format(kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    picture = images.read(encoded(corner_picture(), kind, **options))
    assert picture.mode == "RGB"
    assert np.array_equal(np.asarray(picture), np.asarray(corner_picture()))


def test_path_text_bytes_and_open_file_give_the_same(tmp_path):
    path = tmp_path / "blüte mit Leerzeichen 花.png"
    path.write_bytes(encoded(corner_picture(), "PNG"))
    with path.open("rb") as file:
        results = [images.read(s) for s in (path, str(path), path.read_bytes(), file)]
        assert not file.closed
    assert all(np.array_equal(r, corner_picture()) for r in results)


def test_grayscale_and_one_bit():
    assert images.read(encoded(Image.new("L", (2, 2), 77), "PNG")).getpixel((0, 0)) == (77,) * 3
    assert images.read(encoded(Image.new("1", (2, 2), 1), "PNG")).getpixel((0, 0)) == (255,) * 3


def test_palette_with_and_without_transparency():
    palette = corner_picture().convert("P", palette=Image.Palette.ADAPTIVE, colors=2)
    plain = images.read(encoded(palette, "PNG"))
    assert near(plain.getpixel((0, 0)), RED) and near(plain.getpixel((5, 3)), BLUE)
    seen_through = images.read(encoded(palette, "PNG", transparency=palette.getpixel((0, 0))))
    assert seen_through.getpixel((0, 0)) == (255, 255, 255)
    assert near(seen_through.getpixel((5, 3)), BLUE)


def test_opacity_is_laid_over_white():
    half = images.read(encoded(Image.new("RGBA", (2, 2), (255, 0, 0, 128)), "PNG"))
    assert near(half.getpixel((0, 0)), (255, 127, 127), 1)
    # Whatever colour hides under full transparency must not show.
    hidden = images.read(encoded(Image.new("LA", (2, 2), (0, 0)), "PNG"))
    assert hidden.getpixel((0, 0)) == (255, 255, 255)


def test_transparent_colour_without_alpha_channel():
    keyed = encoded(corner_picture(), "PNG", transparency=RED)
    picture = images.read(keyed)
    assert picture.getpixel((0, 0)) == (255, 255, 255) and picture.getpixel((5, 3)) == BLUE


@pytest.mark.parametrize(("inks", "wanted"), [((0, 0, 0, 0), 255), ((0, 0, 0, 255), 0)])
@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_paper_is_white_and_ink_is_black(kind, inks, wanted):
    # JPEG stores CMYK inverted, as Adobe does; TIFF does not.
    data = encoded(Image.new("CMYK", (16, 16), inks), kind)
    assert (b"Adobe" in data) == (kind == "JPEG")
    assert near(images.read(data).getpixel((4, 4)), (wanted,) * 3)


def test_cmyk_cyan():
    cyan = images.read(encoded(Image.new("CMYK", (16, 16), (255, 0, 0, 0)), "JPEG"))
    assert near(cyan.getpixel((4, 4)), (0, 255, 255))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_keep_their_scale(kind):
    values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    picture = images.read(encoded(Image.fromarray(values), kind))
    assert np.asarray(picture)[0, :, 0].tolist() == [0, 1, 128, 255]


def test_dark_sixteen_bit_picture_stays_dark():
    dark = Image.fromarray(np.full((2, 2), 200, dtype=np.uint16))
    assert images.read(encoded(dark, "PNG")).getpixel((0, 0)) == (1, 1, 1)


@pytest.mark.parametrize("white", [1.0, 255.0, 65535.0])
def test_floats_of_each_usual_scale(white):
    values = np.array([[0, 0.5, 1]], dtype=np.float32) * np.float32(white)
    picture = images.read(encoded(Image.fromarray(values), "TIFF"))
    assert np.asarray(picture)[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize("white", [255, 65535])
def test_wide_integers_of_each_usual_scale(white):
    values = np.array([[0, white]], dtype=np.int32)
    picture = images.read(encoded(Image.fromarray(values), "TIFF"))
    assert np.asarray(picture)[0, :, 0].tolist() == [0, 255]


@pytest.mark.parametrize(
    "values",
    [
        np.array([[0, np.nan]], dtype=np.float32),
        np.array([[-0.5, 1]], dtype=np.float32),
        np.array([[0, 1e6]], dtype=np.float32),
        np.array([[0, 70000]], dtype=np.int32),
        np.array([[-1, 5]], dtype=np.int32),
    ],
)
def test_values_without_a_scale_are_refused(values):
    with pytest.raises(ImageError, match="values"):
        images.read(encoded(Image.fromarray(values), "TIFF"))


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_an_animation_the_first_frame_is_taken(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, BLUE, (0, 255, 0))]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert Image.open(io.BytesIO(data)).n_frames == 3
    assert images.read(data).getpixel((0, 0)) == RED


# --- orientation --------------------------------------------------------------------------------

# How a camera would store the upright picture for each value of the EXIF orientation tag.
STORED_AS = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG"])
@pytest.mark.parametrize("orientation", STORED_AS)
def test_exif_orientation_is_applied_once(kind, orientation):
    stored = corner_picture().resize((48, 32), Image.Resampling.NEAREST)
    upright = stored
    if STORED_AS[orientation] is not None:
        stored = stored.transpose(STORED_AS[orientation])
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    data = encoded(stored, kind, exif=exif)
    for picture in (images.read(data), images.as_image(Image.open(io.BytesIO(data)))):
        assert picture.size == upright.size
        assert near(picture.getpixel((4, 4)), RED, 40)
        assert near(picture.getpixel((40, 28)), BLUE, 40)
        assert picture.info == {}
        # Read again, as when a picture is handed on: nothing may turn it a second time.
        assert np.array_equal(images.as_image(picture), picture)


def test_orientation_of_a_sixteen_bit_picture():
    values = np.zeros((2, 3), dtype=np.uint16)
    values[0, 0] = 65535
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    picture = images.read(encoded(Image.fromarray(values), "PNG", exif=exif))
    assert picture.size == (2, 3) and picture.getpixel((1, 0)) == (255, 255, 255)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("block", [b"Exif\0\0garbage", b"Exif\0\0MM\0\x2a\xff\xff\xff\xff", b""])
def test_broken_exif_does_not_break_a_good_picture(block):
    data = encoded(corner_picture().resize((48, 32)), "JPEG", exif=block)
    assert images.read(data).size == (48, 32)


def test_nonsense_orientation_is_ignored():
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 99
    assert images.read(encoded(corner_picture(), "PNG", exif=exif)).size == (6, 4)


# --- refusals -----------------------------------------------------------------------------------


def test_missing_file_is_named(tmp_path):
    with pytest.raises(DataNotFoundError, match="nowhere.jpg"):
        images.read(tmp_path / "nowhere.jpg")


def test_folder_is_refused_by_name(tmp_path):
    with pytest.raises(ImageError, match=f"{tmp_path.name} is a folder"):
        images.read(tmp_path)


def test_empty_file_is_refused_by_name(tmp_path):
    (tmp_path / "empty.jpg").touch()
    for call in (images.read, images.check):
        with pytest.raises(ImageError, match=r"empty\.jpg is empty"):
            call(tmp_path / "empty.jpg")


def test_other_content_is_refused_by_name(tmp_path):
    (tmp_path / "text.jpg").write_text("I am a letter, not a picture.")
    for call in (images.read, images.check):
        with pytest.raises(ImageError, match=r"text\.jpg is not an image"):
            call(tmp_path / "text.jpg")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP"])
def test_truncated_file_is_refused_by_name(tmp_path, kind):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), kind)
    path = tmp_path / "half.picture"
    path.write_bytes(data[: len(data) // 2])
    for call in (images.read, images.check):
        with pytest.raises(ImageError, match=r"half\.picture"):
            call(path)


def test_header_check_sees_no_truncation_but_is_given_the_size(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), "JPEG")
    path = tmp_path / "half.jpg"
    path.write_bytes(data[: len(data) // 2])
    assert images.check(path, full=False) == (48, 64)


def test_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(ImageError, match="not a regular file"):
        images.read(tmp_path / "pipe.jpg")


@pytest.mark.parametrize("path", ["a\0b.jpg", "x" * 5000])
def test_impossible_paths(path):
    with pytest.raises(ImageError):
        images.read(path)


def huge_png(width: int, height: int) -> bytes:
    """A few bytes that announce a picture of any size."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        total = len(body).to_bytes(4, "big") + kind + body
        return total + zlib.crc32(kind + body).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x00\x00\x00\x00"
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [12_000, 60_000])
def test_enormous_picture_is_refused_before_it_is_decoded(side, tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(huge_png(side, side))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for call in (images.read, images.check, images.as_image):
            with pytest.raises(ImageError, match=r"bomb\.png has .*limit of [\d,]+"):
                call(path)


def test_limit_can_be_set():
    data = encoded(corner_picture(), "PNG")
    assert images.read(data, max_pixels=24).size == (6, 4)
    with pytest.raises(ImageError, match="6 × 4 = 24 pixels, more than the limit of 23"):
        images.read(data, max_pixels=23)
    with pytest.raises(ImageError, match="limit of 23"):
        images.as_image(corner_picture(), max_pixels=23)
    with pytest.raises(ImageError, match="limit of 23"):
        images.as_image(np.zeros((4, 6)), max_pixels=23)


def test_pillow_may_warn_but_ours_decides():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # 90 megapixels: Pillow would warn, our limit allows it; it is cut short all the same.
        with pytest.raises(ImageError, match="damaged or truncated"):
            images.read(huge_png(9_000, 10_000))


def test_filters_of_warnings_that_others_take_back_stay_away():
    """Another thread may be within catch_warnings while this one reads."""
    with contextlib.ExitStack() as other:
        other.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("error", message="another's")

        class File(io.BytesIO):
            def read(self, *size):
                other.close()
                return super().read(*size)

        images.read(File(encoded(corner_picture(), "PNG")))
    assert not any(text and text.pattern == "another's" for _, text, *_ in warnings.filters)


def test_postscript_is_not_run():
    program = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    with pytest.raises(ImageError, match="not an image"):
        images.read(program)
    assert ".eps" not in images.suffixes()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP"]))
def test_damaged_files_raise_only_our_error(seed, kind):
    rng = np.random.default_rng(seed)
    data = bytearray(encoded(corner_picture().resize((24, 16)), kind))
    for position in rng.integers(0, len(data), 4):
        data[position] = rng.integers(256)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            assert images.read(bytes(data), max_pixels=1_000_000).mode == "RGB"
        except ImageError:
            pass


# --- as_image -----------------------------------------------------------------------------------


def test_arrays_and_tensors_of_each_shape_agree():
    bytes_ = np.asarray(corner_picture())
    channels_first = torch.from_numpy(bytes_.copy()).permute(2, 0, 1)
    for value in (
        bytes_,
        bytes_ / 255,
        (bytes_ / 255).astype(np.float32),
        channels_first,
        channels_first / 255,
        (channels_first / 255).requires_grad_(),
        (channels_first / 255).bfloat16(),
        corner_picture(),
    ):
        assert np.array_equal(images.as_image(value), bytes_)


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 1)])
def test_gray_array(shape):
    gray = images.as_image(np.full(shape, 90, dtype=np.uint8))
    assert gray.mode == "RGB" and gray.size == (6, 4) and gray.getpixel((0, 0)) == (90, 90, 90)


def test_gray_tensor():
    for shape in ((4, 6), (1, 4, 6)):
        assert images.as_image(torch.zeros(shape)).size == (6, 4)


def test_opacity_of_an_array_is_laid_over_white():
    clear = np.zeros((3, 3, 4), dtype=np.uint8)
    assert images.as_image(clear).getpixel((1, 1)) == (255, 255, 255)
    assert images.as_image(torch.zeros(4, 3, 3)).getpixel((1, 1)) == (255, 255, 255)


def test_the_given_picture_is_left_alone():
    given_picture = corner_picture()
    result = images.as_image(given_picture)
    result.putpixel((0, 0), (1, 2, 3))
    assert given_picture.getpixel((0, 0)) == RED


def test_rounding_overshoot_is_no_fault():
    assert images.as_image(np.array([[-1e-4, 1 + 1e-4]])).getpixel((1, 0)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.array([[np.nan, 0.5]]), "NaN"),
        (np.array([[np.inf, 0.5]]), "infinity"),
        (np.array([[0.0, 200.0]]), "Divide by 255"),
        (np.array([[-2.1, 2.3]]), "normalised"),
        (np.zeros((4, 6), dtype=np.uint16), "65535"),
        (np.zeros((4, 6), dtype=np.int64), "dtype int64"),
        (np.zeros((4, 6), dtype=bool), "dtype bool"),
        (np.zeros((4, 6), dtype=complex), "dtype complex128"),
        (np.array([["a"]]), "dtype <U1"),
        (np.zeros((4, 6, 2)), r"shape \(4, 6, 2\)"),
        (np.zeros((3, 4, 6)), "channels first"),
        (np.zeros((2, 4, 6, 3)), "batch"),
        (np.zeros(5), r"shape \(5,\)"),
        (np.zeros((0, 6)), "shows nothing"),
        (torch.zeros(2, 4, 6), r"shape \(2, 4, 6\)"),
        (torch.zeros(4, 6, 3).permute(0, 1, 2)[:2], "channels last"),
        (torch.zeros(2, 3, 4, 6), "batch"),
        (torch.full((3, 4, 6), torch.nan), "NaN"),
        (torch.full((3, 4, 6), -1.0), "normalised"),
        (torch.zeros(3, 4, 6, dtype=torch.int32), "dtype int32"),
        (None, "NoneType"),
        ([[0, 1]], "list"),
        (7, "int"),
    ],
)
def test_values_that_are_no_picture(value, message):
    with pytest.raises(ImageError, match=message):
        images.as_image(value)


def test_paths_go_through_read(tmp_path):
    path = Path(tmp_path / "a.png")
    corner_picture().save(path)
    assert np.array_equal(images.as_image(path), images.read(str(path)))
