"""What is a picture, and how does any file or array become one: 8-bit RGB, upright.

Chapter 1 (pairs) reads every photograph through `read`, and `sc.explain` takes whatever a reader
has, a path, a Pillow image, an array or a tensor, through `as_image`. Both refuse what they
cannot turn into a picture with an `ImageError` that names the file.
"""

from __future__ import annotations

import io
import os
import stat
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from siamcam_lib.errors import DataNotFoundError, ImageError

MAX_PIXELS = 100_000_000
"""Largest picture that is decoded, in pixels: about 300 MB once it is RGB."""

# Formats that hold no raster of their own. EPS hands the file to Ghostscript, so a picture of
# unknown origin would be run as a program; IPTC holds a picture of any format, EPS too, and of any
# size; the others are stubs that identify but cannot decode.
_NOT_RASTER = frozenset({"EPS", "IPTC", "WMF", "MPEG", "BUFR", "GRIB", "HDF5"})


@cache
def formats() -> tuple[str, ...]:
    """Names of the raster formats that this Pillow can decode, sorted.

    Example:
        >>> {"JPEG", "PNG"} <= set(formats())
        True
    """
    Image.init()
    return tuple(sorted(set(Image.OPEN) - _NOT_RASTER))


@cache
def suffixes() -> frozenset[str]:
    """File-name suffixes of those formats, in lower case with their dot.

    Example:
        >>> ".jpg" in suffixes(), ".pdf" in suffixes()
        (True, False)
    """
    known = formats()
    return frozenset(s for s, name in Image.registered_extensions().items() if name in known)


def is_picture(name: str) -> bool:
    """Whether a file is called as pictures of those formats are.

    Example:
        >>> is_picture("Rose/1.JPG"), is_picture("Rose/notes.txt")
        (True, False)
    """
    return os.path.splitext(name)[1].lower() in suffixes()


def read(
    source: str | os.PathLike[str] | bytes | BinaryIO, *, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Read one picture as 8-bit RGB, upright.

    Whatever the file holds is brought to the form the networks take: the EXIF orientation is
    applied; grayscale, palette, YCbCr and CMYK pictures (Adobe's inverted ones too) become RGB;
    16-bit, 32-bit integer and floating-point pictures are scaled to 8 bits; transparent parts
    are laid over white; of an animation the first frame is taken. Colour profiles are ignored.

    Where the file does not say which value is white (32-bit integers and floats), it is taken to
    be the smallest of 1 (floats only), 255 and 65535 that no value exceeds.

    Args:
        source: A path, the bytes of a file, or a file opened for reading in binary mode.
        max_pixels: The largest width times height that is decoded. It is compared with the
            file's header before any memory is taken for the pixels. Pillow's own warning of large
            pictures is switched off in this process.

    Returns:
        A Pillow image of mode ``"RGB"`` with no link to the file.

    Raises:
        DataNotFoundError: There is no such file.
        ImageError: The file is a folder, empty, truncated, larger than `max_pixels`, or no image.

    Example:
        >>> import io
        >>> file = io.BytesIO()
        >>> Image.new("L", (4, 3), 200).save(file, "PNG")
        >>> picture = read(file.getvalue())
        >>> picture.mode, picture.size, picture.getpixel((0, 0))
        ('RGB', (4, 3), (200, 200, 200))
    """
    with _opened(source, max_pixels) as (image, name), _decoding(name):
        return _upright_rgb(image, name)


def check(
    source: str | os.PathLike[str], *, full: bool = True, max_pixels: int = MAX_PIXELS
) -> tuple[int, int]:
    """Make sure that a file holds a readable picture, without making the picture.

    Args:
        source: A path.
        full: Decode all pixels, which finds truncated and damaged files. Otherwise only the
            header is read: four times faster or more, and it finds empty files and files that are
            no image.
        max_pixels: As in `read`.

    Returns:
        Width and height in pixels, as stored in the file (before the EXIF orientation).

    Raises:
        DataNotFoundError: There is no such file.
        ImageError: As in `read`.
    """
    with _opened(source, max_pixels) as (image, name):
        size = image.size
        if full:
            with _decoding(name):
                # JPEG decodes faster to a smaller scale, and still reads every byte.
                image.draft("L", (1, 1))
                image.load()
    return size


def as_image(value: Any, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Turn a path, Pillow image, array or tensor into an upright 8-bit RGB picture.

    Args:
        value: One of

            - anything `read` takes;
            - a Pillow image of any mode;
            - a NumPy array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), the last being red, green,
              blue and opacity, of uint8 in 0…255 or of floats in [0, 1];
            - a PyTorch tensor (H, W), (1, H, W), (3, H, W) or (4, H, W) with the same types and
              ranges, on any device.
        max_pixels: As in `read`.

    Returns:
        A Pillow image of mode ``"RGB"``. Opacity is laid over white.

    Raises:
        DataNotFoundError: A path leads nowhere.
        ImageError: The value has another type, shape or dtype, holds NaN or infinity, or floats
            outside [0, 1].

    Example:
        >>> as_image(np.full((2, 5, 3), 0.5)).getpixel((0, 0))
        (128, 128, 128)
    """
    if isinstance(value, Image.Image):
        name = f"the Pillow image {getattr(value, 'filename', '') or value.mode}"
        _check_size(value.size, name, max_pixels)
        with _quiet_about_size(name), _decoding(name):
            return _upright_rgb(value, name)
    if isinstance(value, np.ndarray):
        return _from_array(value, "array", max_pixels)
    # A tensor can only exist where torch is imported already; reading files needs no torch.
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        return _from_tensor(value, torch, max_pixels)
    readable = (str, os.PathLike, bytes, bytearray, memoryview)
    if isinstance(value, readable) or hasattr(value, "read"):
        return read(value, max_pixels=max_pixels)
    raise ImageError(
        f"Cannot make a picture of {type(value).__name__}; give a path, a Pillow image, a NumPy "
        "array (H, W, 3) or a tensor (3, H, W)."
    )


# --- opening ------------------------------------------------------------------------------------


@contextmanager
def _opened(source: Any, max_pixels: int) -> Iterator[tuple[Image.Image, str]]:
    """The open, undecoded picture and what to call it in messages."""
    stream: BinaryIO
    if isinstance(source, (bytes, bytearray, memoryview)):
        stream, name, close = io.BytesIO(source), f"<{len(source)} bytes>", True
        size = len(source)
    elif hasattr(source, "read"):
        stream, name, close = source, str(getattr(source, "name", "<open file>")), False
        size = None
    else:
        stream, name, size = _open_file(source)
        close = True
    try:
        if size == 0:
            raise ImageError(f"{name} is empty (0 bytes); replace it or remove it.")
        with _quiet_about_size(name), _identify(stream, name) as image:
            _check_size(image.size, name, max_pixels)
            yield image, name
    finally:
        if close:
            stream.close()


def _open_file(source: Any) -> tuple[BinaryIO, str, int]:
    try:
        path = Path(source)
        name = str(path)
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise ImageError(
                f"{name} is a folder, not an image; give one file, or load the folder with "
                "sc.datasets.load_folder."
            )
        # A pipe or device would block or never end.
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(f"{name} is not a regular file, so no image is read from it.")
        return path.open("rb"), name, status.st_size
    except FileNotFoundError as error:
        raise DataNotFoundError(f"There is no file {source}; check the path.") from error
    except ImageError:
        raise
    except (OSError, ValueError, TypeError) as error:
        raise ImageError(f"{source!r} cannot be opened: {error}.") from error


def _identify(stream: BinaryIO, name: str) -> Image.Image:
    try:
        return Image.open(stream, formats=formats())
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{name} is not an image that can be read: its content is of no known format, or its "
            "header is damaged. Replace it or remove it."
        ) from error
    except Image.DecompressionBombError:
        raise  # turned into an ImageError by _quiet_about_size
    # Pillow's parsers raise nearly anything on a damaged header: the fault is the file's.
    except Exception as error:
        raise ImageError(f"{name} cannot be read as an image: {error}.") from error


def _check_size(size: tuple[int, int], name: str, max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise ImageError(
            f"{name} has {width} × {height} = {width * height:,} pixels, more than the limit of "
            f"{max_pixels:,}. Make it smaller, or raise max_pixels if it can be trusted."
        )
    if width < 1 or height < 1:
        raise ImageError(f"{name} has {width} × {height} pixels, so it shows nothing.")


@contextmanager
def _quiet_about_size(name: str) -> Iterator[None]:
    """Leave the limit to `_check_size`, which knows the caller's; Pillow's own only warns."""
    # For good: catch_warnings belongs to no thread, and would bring back filters of others.
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    try:
        yield
    except Image.DecompressionBombError as error:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise ImageError(
            f"{name} has more pixels than Pillow's own limit of {limit:,}. Make it smaller, "
            "or, if it can be trusted, raise both max_pixels and PIL.Image.MAX_IMAGE_PIXELS."
        ) from error


@contextmanager
def _decoding(name: str) -> Iterator[None]:
    try:
        yield
    except (ImageError, Image.DecompressionBombError):
        raise
    # As in _identify: a damaged file makes decoders raise nearly anything.
    except Exception as error:
        raise ImageError(
            f"{name} is damaged or truncated: {error}. Replace it or remove it."
        ) from error


# --- converting ---------------------------------------------------------------------------------


def _upright_rgb(image: Image.Image, name: str) -> Image.Image:
    image.load()
    # Only after load(): TIFF files are turned by Pillow itself, and then no longer say so.
    orientation = _orientation(image)
    rgb = _rgb(image, name)
    if rgb is image:
        rgb = image.copy()
    # A leftover EXIF block would have the next reader turn the picture a second time.
    rgb.info = {}
    if orientation == 1:
        return rgb
    # The orientation alone is handed over, so that the rest of the block cannot do harm.
    rgb.getexif()[ExifTags.Base.Orientation] = orientation
    turned = ImageOps.exif_transpose(rgb)
    turned.info = {}
    return turned


def _orientation(image: Image.Image) -> int:
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    # A broken EXIF block does not make the pixels worse: the picture is taken as it lies.
    except Exception:
        return 1
    return found if found in range(1, 9) else 1


def _rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode.startswith("I;16"):
        return _eight_bits(image, name, (65535,))
    if image.mode == "I":
        return _eight_bits(image, name, (255, 65535))
    if image.mode == "F":
        return _eight_bits(image, name, (1, 255, 65535))
    if image.has_transparency_data:
        return _over_white(image.convert("RGBA"))
    return image.convert("RGB")


def _eight_bits(image: Image.Image, name: str, whites: tuple[int, ...]) -> Image.Image:
    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise ImageError(f"{name} holds NaN or infinite values, which have no grey.")
    low, high = float(values.min()), float(values.max())
    white = next((w for w in whites if high <= w), None)
    if low < 0 or white is None:
        raise ImageError(
            f"{name} holds values from {low:g} to {high:g}; expected 0 to {whites[-1]} at most. "
            "Scale it to 8 bits first."
        )
    gray = np.rint(values * (255 / white)).astype(np.uint8)
    return Image.fromarray(gray).convert("RGB")


def _over_white(rgba: Image.Image) -> Image.Image:
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, rgba).convert("RGB")


def _from_tensor(tensor: Any, torch: Any, max_pixels: int) -> Image.Image:
    if tensor.ndim not in (2, 3) or (tensor.ndim == 3 and tensor.shape[0] not in (1, 3, 4)):
        hint = ""
        if tensor.ndim == 4:
            hint = " It looks like a batch: give one picture at a time."
        elif tensor.ndim == 3 and tensor.shape[2] in (1, 3, 4):
            hint = " It looks like channels last: permute(2, 0, 1) puts them first."
        raise ImageError(
            f"A tensor of shape {tuple(tensor.shape)} is no picture; expected (3, H, W), "
            f"(1, H, W), (4, H, W) or (H, W).{hint}"
        )
    values = tensor.detach()
    if values.ndim == 3:
        values = values.permute(1, 2, 0)
    # NumPy has no bfloat16.
    values = values.float() if values.dtype == torch.bfloat16 else values
    try:
        array = values.cpu().numpy()
    except (TypeError, RuntimeError) as error:  # a sparse one, or one without content, say
        raise ImageError(
            f"A tensor of {tensor.dtype}, {tensor.layout} on {tensor.device} cannot be read; "
            "expected a dense one of uint8 or floats."
        ) from error
    return _from_array(array, "tensor", max_pixels)


def _from_array(array: np.ndarray, kind: str, max_pixels: int) -> Image.Image:
    """`array` is (H, W) or (H, W, C), channels last."""
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        hint = ""
        if array.ndim == 4:
            hint = " It looks like a batch: give one picture at a time."
        elif array.ndim == 3 and array.shape[0] in (1, 3, 4):
            hint = " It looks like channels first: numpy.moveaxis(a, 0, -1) puts them last."
        raise ImageError(
            f"An array of shape {array.shape} is no picture; expected (H, W), (H, W, 3) or "
            f"(H, W, 4).{hint}"
        )
    _check_size((array.shape[1], array.shape[0]), f"the {kind}", max_pixels)
    if np.issubdtype(array.dtype, np.floating):
        array = _unit_to_bytes(array, kind)
    elif array.dtype != np.uint8:
        hint = " Divide 16-bit values by 65535 first." if array.dtype == np.uint16 else ""
        raise ImageError(
            f"The {kind} has dtype {array.dtype}; expected uint8 in 0…255 or floats in [0, 1]."
            f"{hint}"
        )
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    image = Image.fromarray(np.ascontiguousarray(array))
    return _over_white(image) if image.mode == "RGBA" else image.convert("RGB")


def _unit_to_bytes(values: np.ndarray, kind: str) -> np.ndarray:
    if not np.isfinite(values).all():
        raise ImageError(f"The {kind} holds NaN or infinity; expected floats in [0, 1].")
    low, high = float(values.min()), float(values.max())
    # Resampling overshoots by rounding errors; anything more is another scale.
    if low < -1e-3 or high > 1 + 1e-3:
        if low < 0:
            hint = "It looks normalised: undo the mean and standard deviation first."
        else:
            hint = "Divide by 255, or convert to uint8."
        raise ImageError(
            f"The {kind} holds values from {low:g} to {high:g}; expected floats in [0, 1]. {hint}"
        )
    return np.rint(np.clip(values.astype(np.float64), 0, 1) * 255).astype(np.uint8)
