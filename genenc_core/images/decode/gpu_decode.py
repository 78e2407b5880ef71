"""JPEG decoding and resizing on a CUDA device by nvJPEG, through torchcodec (`--decode gpu`)."""

import errno
import importlib.metadata
import importlib.util
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, Protocol

import torch
from torch.nn import functional

from genenc_core import errors, spec
from genenc_core.images.decode import decode, headers, load_image
from genenc_core.images.decode.decoded import Decoded, ResizeHint

_REFUSED: Final = frozenset((2, 3, 4, 6, 8, 9, 10))
"""nvJPEG status codes that concern a file: invalid parameter, bad JPEG, not supported, execution failed, internal
error, not implemented, incomplete bitstream.

The others (not initialized, out of memory, wrong architecture) concern the device.
"""
_STATUS = re.compile(
    r"(?:nvjpegDecode failed|Failed to (?:get image info|initialize batch decoding|decode batch)): (\d+)"
)
LARGEST_PIXELS: Final = 32_000_000
"""Limit for one JPEG, for its resized size, and for JPEGs decoded together: 0.1 GB decoded, 0.4 GB as floats."""
SMALLEST_SIDE: Final = 64
LARGEST_REDUCTION: Final = 32
"""Source pixels per pixel and axis; torch's limit for antialiased resize on CUDA is higher."""
USUAL_WORKERS: Final = 8
_END = b"\xff\xd9"


class Decoder(Protocol):
    """JPEG decoder on a device."""

    def decode(self, files: Sequence[bytes | bytearray]) -> list[torch.Tensor] | None:
        """Return uint8 `[3, H, W]` of each, not rotated, on the device; None if it refuses one of them.

        Raises:
            OSError: a fault of the device rather than of a file.
        """
        ...


class NvJpeg:
    """nvJPEG through torchcodec; for a dedicated process, which exits if the device stops working."""

    def __init__(self, device: str) -> None:
        """Initialise the device.

        Raises:
            OSError: the device or torchcodec does not work.
        """
        try:
            self._device = torch.device(device)
            from torchcodec.decoders import decode_jpeg

            torch.cuda.set_device(self._device)
            torch.cuda.synchronize(self._device)
        except (ImportError, OSError, RuntimeError) as error:
            raise OSError(errno.ENODEV, f"cannot decode JPEGs on {device} (--decode gpu): {line(error)}") from error
        self._decode_jpeg = decode_jpeg
        # Fills new memory, so that an image that nvJPEG silently skips is white instead of a previous image.
        torch.use_deterministic_algorithms(True)

    def decode(self, files: Sequence[bytes | bytearray]) -> list[torch.Tensor] | None:
        """Decode to RGB, grey JPEGs included."""
        # nvJPEG's hardware engine does not wait for earlier work on the stream, and would overwrite memory in use.
        torch.cuda.synchronize(self._device)
        sources = [torch.frombuffer(bytearray(file), dtype=torch.uint8) for file in files]
        try:
            images: list[torch.Tensor] = self._decode_jpeg(sources, mode="RGB", device=self._device)
            torch.cuda.synchronize(self._device)
        except RuntimeError as error:
            raise_if_out_of_memory(error)
            self._require_device()
            if is_refusal(str(error)):
                return None
            raise OSError(errno.EIO, f"nvJPEG failed on {self._device}: {line(error)}") from error
        return images

    def _require_device(self) -> None:
        """Exit if CUDA no longer works in this process; it may in a new one, without the file."""
        try:
            torch.cuda.synchronize(self._device)
        except RuntimeError as error:
            sys.stderr.write(f"{line(error)}\n")
            sys.stderr.flush()
            os._exit(1)


def require(device: str) -> None:
    """Check that JPEGs can be decoded on the device that runs the model.

    Raises:
        InputError: it is not a CUDA device, or torchcodec is not installed.
    """
    if not device.startswith("cuda"):
        raise errors.InputError(
            f"--decode gpu needs a CUDA device, but this run uses {device!r}: pass --device cuda:0 if there is one, or "
            "decode on the CPU (without --decode, in another --out)"
        )
    if importlib.util.find_spec("torchcodec") is None:
        raise errors.InputError("--decode gpu needs torchcodec: pip install 'genenc[gpu]'")


def describe(device: str) -> str:
    """Return the name of the device and the version of torchcodec, to be recorded."""
    return f"{torch.cuda.get_device_name(device)}, torchcodec {importlib.metadata.version('torchcodec')}"


def is_refusal(message: str) -> bool:
    """Return whether an error message of torchcodec means that nvJPEG cannot decode a file, not a device fault."""
    if "Unknown chroma subsampling" in message:
        return True
    match = _STATUS.search(message)
    return match is not None and int(match[1]) in _REFUSED


def raise_if_out_of_memory(error: RuntimeError) -> None:
    """Raise `OSError` if an error of any library means that the device is out of memory."""
    if isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error):
        reason = f"not enough device memory to decode images ({line(error)}): use fewer --decode-workers"
        raise OSError(errno.ENOMEM, f"{reason} or a smaller --batch-size") from error


def line(error: Exception) -> str:
    """Return the message of an error in one line."""
    return " ".join(str(error).split())[:200]


class GpuDecoder:
    """Decodes and resizes the JPEGs of a piece that suit the device."""

    def __init__(self, decoder: Decoder, preprocessing: spec.Preprocessing, hint: ResizeHint, max_pixels: int) -> None:
        self._decoder = decoder
        self._preprocessing = preprocessing
        self._hint = hint
        self._max_pixels = min(max_pixels, LARGEST_PIXELS)

    def header(self, data: bytes | bytearray) -> headers.JpegHeader | None:
        """Return the header of a file to decode on the device; None if it is left to the CPU.

        The device decodes complete baseline JPEGs, grey or YCbCr with common subsampling, neither tiny nor huge.
        """
        if not data.startswith(b"\xff\xd8\xff") or not data.endswith(_END) or not headers.is_usual_baseline(data):
            return None
        header = headers.jpeg_header(data)
        if header is None or not header.plain or header.many_scans:
            return None
        if min(header.height, header.width) < SMALLEST_SIDE or header.height * header.width > self._max_pixels:
            return None
        target = self._hint.target(*header.upright_size).size
        reduced = max(source / made for source, made in zip(header.upright_size, target, strict=True))
        if target[0] * target[1] > LARGEST_PIXELS or reduced > LARGEST_REDUCTION:
            return None
        return header

    def images(self, files: Iterable[load_image.ReadFile]) -> Iterator[tuple[load_image.ReadFile, Decoded | None]]:
        """Yield files with their decoded images, or None for the CPU to decode.

        Files for the CPU come first, the others after all were seen.

        Raises:
            OSError: a fault of the device.
        """
        waiting: list[tuple[load_image.ReadFile, headers.JpegHeader]] = []
        for file in files:
            header = None if file.error is not None or file.image is not None else self.header(file.data)
            if header is None:
                yield file, None
            else:
                waiting.append((file, header))
        made = self.decode([(file.data, header) for file, header in waiting])
        for (file, _), image in zip(waiting, made, strict=True):
            yield file, image

    def decode(self, files: Sequence[tuple[bytes | bytearray, headers.JpegHeader]]) -> Iterator[Decoded | None]:
        """Yield each file's image, upright and resized, on the host; None if the device refuses it.

        Raises:
            OSError: a fault of the device.
        """
        for part in _parts([header.height * header.width for _, header in files]):
            some = files[part]
            bare = [headers.without_exif(data) for data, _ in some]  # torchcodec would apply the orientation
            together = self._decoder.decode(bare)
            images = self._one_by_one(bare) if together is None else together
            for pixels, (_, header) in zip(images, some, strict=True):
                yield None if pixels is None else self._finished(pixels, header)

    def _one_by_one(self, files: Sequence[bytes | bytearray]) -> list[torch.Tensor | None]:
        results = [self._decoder.decode([each]) for each in files]
        return [None if each is None else each[0] for each in results]

    def _finished(self, pixels: torch.Tensor, header: headers.JpegHeader) -> Decoded | None:
        if tuple(pixels.shape) != (3, header.height, header.width):
            return None
        target = self._hint.target(*header.upright_size).size
        try:
            made = self._resized(decode.upright(pixels, header.orientation), target).cpu()
        except RuntimeError as error:
            raise_if_out_of_memory(error)
            raise OSError(errno.EIO, f"the device failed to resize an image: {line(error)}") from error
        # An all-white image may be one that nvJPEG skipped, so the CPU decodes it.
        if int(made.numpy().min()) == 255:
            return None
        return Decoded(pixels=made, orientation=header.orientation, size=header.upright_size)

    def _resized(self, pixels: torch.Tensor, target: tuple[int, int]) -> torch.Tensor:
        """Resize uint8 `[3, H, W]` to the target size like `resize.resize`, up to rounding: across, then down.

        Values are rounded to bytes in between, so that bicubic overshoot is clipped there as well.
        """
        for size in ((pixels.shape[1], target[1]), target):
            if size != tuple(pixels.shape[1:]):
                made = functional.interpolate(
                    pixels[None].float(),
                    size,
                    mode=self._preprocessing.interpolation,
                    antialias=self._preprocessing.antialias,
                )
                pixels = made.round_().clamp_(0, 255).to(torch.uint8)[0]
        return pixels


def _parts(sizes: Sequence[int]) -> Iterator[slice]:
    """Yield slices of images to decode together: at most `LARGEST_PIXELS`, or one image."""
    start, total = 0, 0
    for at, size in enumerate(sizes):
        if total and total + size > LARGEST_PIXELS:
            yield slice(start, at)
            start, total = at, 0
        total += size
    if sizes:
        yield slice(start, len(sizes))
