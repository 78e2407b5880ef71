"""Pillow's BMP reader with fixes for grey palettes of few bits, run-length encoding, and blank alpha."""

import numpy as np
from PIL import BmpImagePlugin, Image, ImageFile, ImagePalette

from genenc_core.images.decode.decoded import ImageUnreadable

_CORE_HEADER_BYTES = 12
_ALPHA_MASK = slice(52, 56)
_BITFIELDS = 3
_BITS_OF_MODE = {"1": 1, "L": 8}


class BmpImage(BmpImagePlugin.BmpImageFile):
    """A BMP whose indices and alpha are read according to its header.

    Pillow reads the indices of a black-and-white palette as 1 bit and those of another grey ramp as 8 bits, whatever
    their real depth, and takes zero masks for alpha.
    """

    def _open(self) -> None:
        super()._open()
        (codec, extents, offset, args), *_ = self.tile
        assert isinstance(args, tuple)
        bits, colours, has_alpha_mask = self._header()
        if bits == 16 and has_alpha_mask and self._has_masks():
            raise ImageUnreadable("unsupported BMP of 16 bits with alpha: save it with 24 or 32 bits, or as PNG")
        if codec == "bmp_rle":
            codec = _RleDecoder.name
        if self.mode == "RGBA" and not has_alpha_mask:
            self._mode, args = "RGB", ("BGRX", *args[1:])
        if self.mode in _BITS_OF_MODE and (bits != _BITS_OF_MODE[self.mode] or colours < 2**bits):
            levels = (0, 255)[:colours] if self.mode == "1" else range(min(colours, 256))
            self._mode = "P"
            self.palette = ImagePalette.raw("RGB", bytes(level for level in levels for _ in range(3)))
            if codec == "raw":
                args = ("P" if bits == 8 else f"P;{bits}", *args[1:])
        self.tile = [ImageFile._Tile(codec, extents, offset, args)]

    def _header(self) -> tuple[int, int, bool]:
        """Return the bits per pixel, the colours of a palette, and whether a mask says which bits are alpha."""
        assert self.fp is not None
        self.fp.seek(14)
        header = self.fp.read(56)
        size = int.from_bytes(header[:4], "little")
        is_core = size == _CORE_HEADER_BYTES
        bits = int.from_bytes(header[10:12] if is_core else header[14:16], "little")
        colours = 0 if is_core else int.from_bytes(header[32:36], "little")
        return bits, colours or 2**bits, size >= _ALPHA_MASK.stop and any(header[_ALPHA_MASK])

    def _has_masks(self) -> bool:
        """Return whether masks say which bits are which; else they mean nothing."""
        assert self.fp is not None
        self.fp.seek(30)
        return int.from_bytes(self.fp.read(4), "little") == _BITFIELDS


class _RleDecoder(ImageFile.PyDecoder):
    """Run-length decoder; Pillow's own drops empty rows, which shifts those above them."""

    name = "genenc_bmp_rle"
    _pulls_fd = True

    def decode(self, buffer: object) -> tuple[int, int]:  # noqa: ARG002
        assert self.fd is not None
        data = self.fd.read()
        indices = np.zeros((self.state.ysize, self.state.xsize), dtype=np.uint8)
        _fill(indices, data, four_bits=bool(self.args[1]))
        self.set_as_raw(indices.tobytes(), self.mode, (0, self.args[-1]))
        return -1, 0


def _fill(indices: np.ndarray, data: bytes, *, four_bits: bool) -> None:
    """Write run-length decoded indices, rows in file order; pixels that are skipped stay 0.

    Raises:
        ValueError: the data ends before the image does.
    """
    height, width = indices.shape
    at = x = y = 0
    while y < height and not (y == height - 1 and x >= width):
        if at + 2 > len(data):
            raise ValueError("truncated: the run-length data ends before the image does")
        count, value = data[at : at + 2]
        at += 2
        if count:
            run = np.resize(np.array((value >> 4, value & 15) if four_bits else value, dtype=np.uint8), count)
        elif value == 0:
            x, y = 0, y + 1
            continue
        elif value == 1:
            return
        elif value == 2:
            x, y = x + data[at], y + data[at + 1]
            at += 2
            continue
        else:
            packed = np.frombuffer(data, dtype=np.uint8, count=(value + 1) // 2 if four_bits else value, offset=at)
            run = np.stack((packed >> 4, packed & 15), axis=1).ravel()[:value] if four_bits else packed
            at += packed.size + packed.size % 2  # padded to 16 bits
        indices[y, x : x + len(run)] = run[: max(0, width - x)]
        x += len(run)


Image.register_decoder(_RleDecoder.name, _RleDecoder)
