"""Images in and out: files, their sizes, and the tensors that networks trained on ImageNet take.

An image is a uint8 array (H, W, 3), red, green and blue from 0 to 255. A network takes a float32 tensor (1, 3, H, W)
whose channels have ImageNet's mean taken off and are divided by its standard deviation; `preprocess` and `deprocess` go
from the one to the other. Pillow reads, writes and resizes.
"""

from __future__ import annotations

import io
import os
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastrnn.checks import Arguments
from fastrnn.runs import write_whole

__all__ = [
    "MEAN",
    "STD",
    "check_suffix",
    "clamp_",
    "deprocess",
    "photographs",
    "preprocess",
    "read_image",
    "resize",
    "save_image",
]

# Of the red, green and blue of ImageNet's training images, scaled to [0, 1]: what every published network of
# torchvision was trained with.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

# Endings of the files that `save_image` writes, with Pillow's names of the formats.
FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}
_HOW: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"lossless": True},
    "TIFF": {"compression": "tiff_deflate"},
}


# ---- files -----------------------------------------------------------------------------------------------------------


def read_image(path: str | os.PathLike[str], size: int | None = None) -> np.ndarray:
    """Read an image file, as a viewer would show it.

    Parameters
    ----------
    path : path
        A file of any format that Pillow reads; of several frames the first. A camera's note of how it was held (EXIF)
        is followed, what is transparent is laid on white, and grey, palettes, CMYK and 16 bits become 8-bit RGB.
    size : int, optional
        Length of the shorter side to resize to, in pixels; see `resize`. Default: as in the file.

    Returns
    -------
    uint8 (H, W, 3)

    Raises
    ------
    ValueError
        There is no such file, it is a folder, no image, truncated or damaged, holds more pixels than Pillow's limit
        against decompression bombs (``PIL.Image.MAX_IMAGE_PIXELS``), or floating-point numbers; or `size` is below 1.
    """
    Image = _pillow("read_image")
    if size is not None:
        size = Arguments("read_image").whole("size", size)
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"read_image: {path}: expected an image file, found a folder")
    try:
        # The system's own words where it cannot be opened; what Pillow says of these is of no use to anyone.
        file = open(path, "rb")
    except (OSError, ValueError) as error:
        raise ValueError(f"read_image: cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    with file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of damaged notes beside the image
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            image = _as_rgb(Image.open(file), path)
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise ValueError(
                f"read_image: {path}: expected an image of at most {Image.MAX_IMAGE_PIXELS:,} pixels ({error})"
            ) from error
        except _Unreadable as error:
            raise ValueError(f"read_image: {path}: {error}") from None
        except MemoryError:
            raise
        except Exception as error:  # what Pillow raises on damage depends on the format and on the place
            raise ValueError(f"read_image: {path}: expected an image, but {_reason(error, path)}") from error
    return np.array(image) if size is None else _resized("read_image", image, size)


class _Unreadable(ValueError):
    """An image of a kind that has no one meaning in 8 bits."""


def _reason(error: Exception, path: Path) -> str:
    size = path.stat().st_size
    if type(error).__name__ == "UnidentifiedImageError":
        return f"no format is known that begins as this file does ({size:,} bytes)"
    return f"the file is truncated or damaged ({size:,} bytes; Pillow says: {error})"


def _as_rgb(image: Any, path: Path) -> Any:
    """A Pillow image, loaded, upright, in RGB, on white."""
    from PIL import Image, ImageOps

    image.load()
    with suppress(Exception):  # damaged notes leave the image as it is stored
        image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise _Unreadable("expected whole numbers, got floating-point pixels: convert it to 8 or 16 bits first")
    if image.mode == "I" or image.mode.startswith("I;"):  # 16 bits, which Pillow would clip at 255 instead of scaling
        values = np.asarray(image).astype(np.int64)
        if values.size and (values.min() < 0 or values.max() > 65535):
            raise _Unreadable(f"expected 8 or 16 bits a pixel, got values from {values.min():,} to {values.max():,}")
        image = Image.fromarray((values / 257 + 0.5).astype(np.uint8))
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def check_suffix(path: str | os.PathLike[str]) -> str:
    """The format that the ending of a file's name stands for.

    Parameters
    ----------
    path : path
        Where an image is to be saved.

    Returns
    -------
    str
        Pillow's name of the format, as ``"PNG"``.

    Raises
    ------
    ValueError
        It ends in none of those that `save_image` writes.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in FORMATS:
        raise ValueError(f"save_image: {path}: the name must end in one of {', '.join(FORMATS)}, got {suffix!r}")
    return FORMATS[suffix]


def save_image(path: str | os.PathLike[str], image: np.ndarray) -> None:
    """Write an image so that at any moment there is all of the file or none of it.

    Parameters
    ----------
    path : path
        The file; its ending says the format: .png, .jpg, .webp, .bmp or .tif. It is written aside as ``PATH.part``
        and renamed.
    image : uint8 (H, W, 3) or (H, W)
        In colour, or in shades of grey.

    Raises
    ------
    ValueError, TypeError
        The ending is another, or `image` no such array.
    OSError
        It cannot be written. A file that was there before is still there.
    """
    kind = check_suffix(path)
    image = _checked("save_image", image, grey=True)
    Image = _pillow("save_image")
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, kind, **_HOW.get(kind, {}))
    write_file("save_image", Path(path), buffer.getbuffer())


def write_file(function: str, path: Path, content: Any) -> None:
    """`runs.write_whole`, with the words for what can go wrong."""
    try:
        write_whole(path, content)
    except OSError as error:
        raise OSError(f"{function}: cannot write {path}: {error.strerror or error}") from error


# ---- sizes -----------------------------------------------------------------------------------------------------------


def resize(image: np.ndarray, size: int) -> np.ndarray:
    """Resize an image, the ratio of its sides kept, without aliasing.

    Parameters
    ----------
    image : uint8 (H, W, 3)
    size : int
        Length of the shorter side of the result, in pixels.

    Returns
    -------
    uint8 (H', W', 3)
        A new array, with ``min(H', W') == size``. Bicubic interpolation; where it gets smaller, over as many pixels as
        each new one covers.

    Raises
    ------
    ValueError, TypeError
        `image` is no such array, `size` is below 1, or the result would hold more pixels than Pillow's limit.
    """
    size = Arguments("resize").whole("size", size)
    Image = _pillow("resize")
    return _resized("resize", Image.fromarray(np.ascontiguousarray(_checked("resize", image))), size)


def _resized(function: str, image: Any, size: int) -> np.ndarray:
    from PIL import Image

    width, height = image.size
    short = min(width, height)
    if short == size:
        return np.array(image)
    new = (max(size, round(width * size / short)), max(size, round(height * size / short)))
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and new[0] * new[1] > limit:
        raise ValueError(
            f"{function}: argument 'size' must leave at most {limit:,} pixels, got {size} for an image of "
            f"{height} x {width}, which makes {new[1]} x {new[0]}"
        )
    return np.array(image.resize(new, Image.Resampling.BICUBIC))


# ---- tensors ---------------------------------------------------------------------------------------------------------


def preprocess(image: np.ndarray, device: Any = "cpu") -> torch.Tensor:
    """An image as a network trained on ImageNet takes it.

    Parameters
    ----------
    image : uint8 (H, W, 3)
    device : str or torch.device
        Where the tensor is to be.

    Returns
    -------
    float32 Tensor (1, 3, H, W)
        ``(image / 255 - MEAN) / STD``, channel by channel.

    Raises
    ------
    ValueError, TypeError
        `image` is no such array.
    """
    image = _checked("preprocess", image)
    values = (image.astype(np.float32) / 255 - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    return torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1))[None]).to(device)


def deprocess(tensor: torch.Tensor) -> np.ndarray:
    """The image that `preprocess` made a tensor of.

    Parameters
    ----------
    tensor : Tensor (1, 3, H, W)
        Of any floating dtype, on any device. Values beyond black and white become black and white.

    Returns
    -------
    uint8 (H, W, 3)

    Raises
    ------
    ValueError, TypeError
        It has another shape or dtype, or holds NaN.
    """
    _check_tensor("deprocess", tensor)
    values = tensor.detach().to("cpu", torch.float32)[0].numpy().transpose(1, 2, 0)
    if np.isnan(values).any():
        raise ValueError("deprocess: argument 'tensor' must hold numbers, got NaN")
    values = (values * np.array(STD, np.float32) + np.array(MEAN, np.float32)) * 255
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def clamp_(tensor: torch.Tensor) -> torch.Tensor:
    """Hold a tensor, in place, to the values that real images have after `preprocess`.

    Parameters
    ----------
    tensor : Tensor (N, 3, H, W)
        Changed without a record for autograd.

    Returns
    -------
    Tensor
        The same one.
    """
    if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
        raise Arguments("clamp_").fail(TypeError, "tensor", "be a floating-point Tensor (N, 3, H, W)", _what(tensor))
    if tensor.ndim != 4 or tensor.shape[1] != 3:
        raise Arguments("clamp_").fail(ValueError, "tensor", "have shape (N, 3, H, W)", _what(tensor))
    with torch.no_grad():
        for channel, (mean, std) in enumerate(zip(MEAN, STD, strict=True)):
            tensor[:, channel].clamp_(-mean / std, (1 - mean) / std)
    return tensor


# ---- embedded images -------------------------------------------------------------------------------------------------


def photographs() -> dict[str, np.ndarray]:
    """The two photographs that scikit-learn carries.

    Returns
    -------
    dict
        ``"china"``, a palace, by danielbuechele, and ``"flower"``, a dahlia, by vultilion, both of Flickr, CC BY 2.0:
        uint8 (427, 640, 3) each.

    Raises
    ------
    ImportError
        scikit-learn or Pillow is not installed.
    """
    _pillow("photographs")
    try:
        from sklearn.datasets import load_sample_image
    except ImportError as error:
        raise ImportError(
            "photographs: the photographs come with scikit-learn: pip install 'fastrnn[vision]'"
        ) from error
    return {name: np.array(load_sample_image(f"{name}.jpg")) for name in ("china", "flower")}


# ---- checks ----------------------------------------------------------------------------------------------------------


def _pillow(function: str) -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(f"{function}: images need Pillow: pip install 'fastrnn[vision]'") from error
    return Image


def _what(value: Any) -> str:
    if isinstance(value, (np.ndarray, torch.Tensor)):
        return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"
    return f"{type(value).__name__}"


def _checked(function: str, image: Any, grey: bool = False) -> np.ndarray:
    expected = "be a uint8 array (H, W, 3)" + (" or (H, W)" if grey else "")
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        raise Arguments(function).fail(TypeError, "image", expected, _what(image))
    if not ((image.ndim == 3 and image.shape[2] == 3) or (grey and image.ndim == 2)) or 0 in image.shape:
        raise Arguments(function).fail(ValueError, "image", expected, _what(image))
    return image


def _check_tensor(function: str, tensor: Any) -> None:
    if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
        raise Arguments(function).fail(TypeError, "tensor", "be a floating-point Tensor (1, 3, H, W)", _what(tensor))
    if tensor.ndim != 4 or tuple(tensor.shape[:2]) != (1, 3) or 0 in tensor.shape:
        raise Arguments(function).fail(ValueError, "tensor", "have shape (1, 3, H, W)", _what(tensor))
