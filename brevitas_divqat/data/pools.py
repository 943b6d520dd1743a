# SPDX-License-Identifier: BSD-3-Clause
"""Read unlabelled images, of a thief or a defender, from an array file or a folder of pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from brevitas_divqat.data.images import conform, from_picture
from brevitas_divqat.data.records import Images, ImageShape, Pool, describe
from brevitas_divqat.data.sources import explained
from brevitas_divqat.errors import DataError

_ARRAYS = (".npy", ".npz")
_PICTURES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
_LAYOUTS = "uint8 (N, H, W), (N, H, W, C) or (N, C, H, W) with C = 1 or 3"


def load_pool(path: Path, image_shape: ImageShape, option: str = "--pool") -> Pool:
    """Read unlabelled images and bring them to the shape of the victim's.

    A four-dimensional array whose last axis is 1 or 3 is taken as (N, H, W, C); otherwise it must
    be (N, C, H, W). A folder is searched recursively and read in the order of the relative paths;
    its pictures may differ in size, and their transparency is dropped.

    Args:
        path: ``.npy`` file; ``.npz`` file with one array, or with one named ``images``; or folder
            of bmp, jpg, png or webp files.
        image_shape: (C, H, W) of the victim's images.
        option: what named the path, for messages.

    Returns:
        The pool, named after the file or folder, with uint8 images (N, *image_shape).

    Raises:
        DataError: If there is no image at ``path``, or one that cannot be used.
    """
    path = Path(path)
    if path.is_dir():
        return Pool(path.resolve().name, _read_folder(path, image_shape, option))
    if not path.is_file():
        raise DataError(
            f"{path}: not found; give {option} a .npy or .npz file or a folder of images"
        )
    if path.suffix.lower() not in _ARRAYS:
        raise DataError(
            f"{path}: got a file of type {path.suffix!r}, expected .npy, .npz or a folder of "
            "images; put single images into a folder"
        )
    return Pool(path.name, conform(_channels_first(_read_array(path), path), image_shape))


def _read_array(path: Path) -> NDArray[np.generic]:
    with explained(
        f"{path}: not a plain NumPy array file", f"save {_LAYOUTS} with numpy.save, without pickle"
    ):
        content = np.load(path, allow_pickle=False)
        if isinstance(content, np.ndarray):
            return content
        with content:
            names = content.files
            if "images" not in names and len(names) != 1:
                raise DataError(
                    f"{path}: got the arrays {', '.join(names) or '(none)'}, expected one array or "
                    "one named 'images'; save it with numpy.savez(path, images=...)"
                )
            array: NDArray[np.generic] = content["images" if "images" in names else names[0]]
            return array


def _channels_first(array: NDArray[np.generic], path: Path) -> Images:
    if array.dtype != np.uint8:
        raise DataError(
            f"{path}: got {describe(array)}, expected {_LAYOUTS}; "
            "scale the pixels to 0..255 and convert them with .astype(numpy.uint8)"
        )
    if array.ndim not in (3, 4):
        raise DataError(
            f"{path}: got {array.ndim} dimensions, {describe(array)}, expected {_LAYOUTS}; "
            "reshape the array"
        )
    if array.size == 0:
        raise DataError(f"{path}: got an empty array {array.shape}; save at least one image")
    images: Images = array.astype(np.uint8, copy=False)
    if images.ndim == 3:
        return images[:, None]
    if images.shape[-1] in (1, 3):
        return images.transpose(0, 3, 1, 2)
    if images.shape[1] in (1, 3):
        return images
    raise DataError(
        f"{path}: got {describe(array)}, in which neither the last nor the second axis is 1 or 3, "
        f"expected {_LAYOUTS}; convert the images to grey or RGB"
    )


def _read_folder(folder: Path, image_shape: ImageShape, option: str) -> Images:
    files = sorted(
        (file for file in folder.rglob("*") if file.suffix.lower() in _PICTURES and file.is_file()),
        key=lambda file: file.relative_to(folder).as_posix(),
    )
    if not files:
        raise DataError(
            f"{folder}: got no images, expected files of type {', '.join(_PICTURES)}; "
            f"name another folder with {option}"
        )
    return np.stack([_read_picture(file, image_shape) for file in files])


def _read_picture(file: Path, image_shape: ImageShape) -> Images:
    from PIL import Image

    with (
        explained(f"{file}: not an intact image", "replace or remove the file"),
        Image.open(file) as picture,
    ):
        if picture.mode.startswith(("I", "F")):
            raise DataError(
                f"{file}: got pixels of Pillow's mode {picture.mode!r}, expected 8 bits per "
                "channel; save the image with 8 bits"
            )
        grey = picture.mode in ("1", "L", "LA")
        return from_picture(picture.convert("L" if grey else "RGB"), image_shape)
