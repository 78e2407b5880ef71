"""TIFF by its tags: which pages Pillow reads right, which tifffile does, and what is refused with the reason."""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import TiffImagePlugin

from genenc_core.images.decoded import ImageUnreadable, bands

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK, YCBCR = 0, 1, 2, 3, 5, 6
"""PhotometricInterpretation, TIFF 6.0 page 37."""
_UNSIGNED, _SIGNED, _FLOAT = 1, 2, 3
_UNASSOCIATED = 2
_CMYK_INKS = 1
"""InkSet, TIFF 6.0 page 70."""
_JPEG = (6, 7)
_WEBP = 50001
_COLOURS: Mapping[int, int] = {WHITE_IS_ZERO: 1, BLACK_IS_ZERO: 1, RGB: 3, PALETTE: 1, CMYK: 4, YCBCR: 3}
_REFUSED: Mapping[int, str] = {
    4: "a transparency mask",
    8: "CIE L*a*b* colours",
    9: "ICC L*a*b* colours",
    10: "ITU L*a*b* colours",
    32803: "a colour filter array (raw camera data)",
    32844: "LogL luminance",
    32845: "LogLuv colours",
    34892: "linear raw camera data",
    51177: "depth",
}
LARGEST_INTEGER = 65535
"""Integers of more than 16 bits count as 16-bit ones up to here."""
_BYTE = 8
_PILLOW_READS = frozenset(
    {
        *((WHITE_IS_ZERO, 1, 1), (BLACK_IS_ZERO, 1, 1), (WHITE_IS_ZERO, 8, 1), (BLACK_IS_ZERO, 8, 1)),
        *((BLACK_IS_ZERO, 16, 1), (RGB, 8, 3), (RGB, 8, 4), (CMYK, 8, 4)),
    }
)
"""Photometric interpretation, bits, samples."""


class Page:
    """The first page of a TIFF.

    Raises:
        ImageUnreadable: no page, one that is cut off, or tags that contradict each other.
    """

    def __init__(self, data: bytes | bytearray) -> None:
        import tifffile

        try:
            pages: Any = tifffile.TiffFile(io.BytesIO(data)).pages
            self._page: Any = pages[0]
            if self._page.is_reduced and _has_second(pages):
                raise ImageUnreadable(
                    "the first page of this TIFF is a smaller version of another (NewSubfileType 1): write the image "
                    "itself first, or alone"
                )
            self._read_tags()
            missing = self._misses_strips(len(data))
        except ImageUnreadable:
            raise
        except Exception as error:  # a parser of hostile bytes raises nearly anything
            raise ImageUnreadable(f"damaged TIFF: {_reason(error)}") from error
        self.big = data[2:4] in (b"+\0", b"\0+")
        if min(self.height, self.width, self.samples) < 1:
            raise ImageUnreadable(f"damaged TIFF: {self.width} x {self.height} pixels of {self.samples} samples")
        if missing:
            raise ImageUnreadable("truncated TIFF: it ends before its pixels do, or lacks some of them")

    def _read_tags(self) -> None:
        tags = self._page.tags
        self.height, self.width = int(self._page.imagelength), int(self._page.imagewidth)
        self.samples = int(self._page.samplesperpixel)
        self.bits = _one_of("bits per sample", tags.valueof("BitsPerSample", 1))
        self.format = _one_of("sample formats", tags.valueof("SampleFormat", _UNSIGNED))
        self.photometric = int(tags.valueof("PhotometricInterpretation", -1))
        self.compression = int(self._page.compression)
        self.planar = int(self._page.planarconfig) == 2 and self.samples > 1
        extra = tags.valueof("ExtraSamples", ())
        self.extra = tuple(map(int, extra if isinstance(extra, tuple) else (extra,)))
        orientation = tags.valueof("Orientation", 1)
        self.orientation = orientation if isinstance(orientation, int) else 1
        self._refuse_other_kinds(int(tags.valueof("ImageDepth", 1)), int(tags.valueof("InkSet", _CMYK_INKS)))

    def _refuse_other_kinds(self, depth: int, inks: int) -> None:
        """Refuse what readers take for a plain image, each in its own way."""
        if depth != 1:
            raise ImageUnreadable(f"a TIFF of {depth} planes in one image (ImageDepth): write each plane as an image")
        if self.photometric == CMYK and inks != _CMYK_INKS:
            raise ImageUnreadable("a TIFF of other inks than cyan, magenta, yellow and black: convert it to RGB")

    def _misses_strips(self, size: int) -> bool:
        offsets, counts = self._page.dataoffsets, self._page.databytecounts
        ends = [offset + count for offset, count in zip(offsets, counts, strict=True)]
        return not ends or min(counts) <= 0 or max(ends) > size

    @property
    def pillow_reads(self) -> bool:
        """Whether Pillow reads such a page right, as the tests' comparison with other readers shows."""
        if self.format != _UNSIGNED or self.big or self.planar:
            return False
        if self.compression not in TiffImagePlugin.COMPRESSION_INFO or self.compression == _WEBP:  # not in every build
            return False
        if self.photometric == YCBCR:
            return self.compression in _JPEG and (self.bits, self.samples) == (8, 3)
        if self._narrower_ranges():
            return False
        if (self.photometric, self.bits, self.samples) == (PALETTE, 8, 1):
            return bool(self._colour_map().max() > 255)
        return (self.photometric, self.bits, self.samples) in _PILLOW_READS

    def rgb(self) -> np.ndarray:
        """Return uint8 [H, W, 3] as stored, not yet upright.

        Unsigned samples are scaled by their bits, signed ones from 0 to their largest value, integers of more than 16
        bits as 16 bits, floats by the tags SMinSampleValue and SMaxSampleValue, or from 0 to 1. Unassociated alpha is
        composited over black.

        Raises:
            ImageUnreadable: damaged, without a meaning in red, green and blue, or values whose range is not known.
        """
        self._check()
        samples = self._samples()
        if self.photometric == PALETTE:
            return self._colours(samples[..., 0])
        low, high = self._range(samples)
        pixels = np.empty((self.height, self.width, 3), dtype=np.uint8)
        for rows in bands(self.height, self.width):
            pixels[rows] = np.rint(self._over_black((samples[rows].astype(np.float64) - low) / (high - low)) * 255)
        return pixels

    def _check(self) -> None:
        if self.photometric in _REFUSED:
            raise ImageUnreadable(f"a TIFF of {_REFUSED[self.photometric]}: convert it to RGB or grey")
        is_jpeg = self.compression == _JPEG[1] and self.bits == 8 and not self.planar
        if self.photometric == YCBCR and not is_jpeg:  # of a JPEG tifffile gives RGB
            raise ImageUnreadable("a TIFF of YCbCr colours that are no JPEG of 8 bits: convert it to RGB")
        if self.photometric not in _COLOURS:
            raise ImageUnreadable(f"a TIFF of an unknown kind (PhotometricInterpretation {self.photometric})")
        colours = _COLOURS[self.photometric]
        if not colours <= self.samples <= colours + 1:
            raise ImageUnreadable(
                f"a TIFF of {self.samples} channels where {colours} have a meaning: write red, green and blue, or grey"
            )
        if self.format not in (_UNSIGNED, _SIGNED, _FLOAT):
            raise ImageUnreadable(f"a TIFF of samples without a known meaning (SampleFormat {self.format})")

    def _samples(self) -> np.ndarray:
        """Return the samples as stored, [H, W, samples]."""
        try:
            # One thread: images are decoded side by side already.
            values = np.asarray(self._page.asarray(maxworkers=1, squeeze=False))
        except MemoryError:
            raise
        except Exception as error:  # codecs raise exceptions of their own
            raise ImageUnreadable(f"damaged or unsupported TIFF: {_reason(error)}") from error
        planes, depth, height, width, contiguous = values.shape
        if depth != 1 or (height, width) != (self.height, self.width) or planes * contiguous != self.samples:
            raise ImageUnreadable(
                f"a TIFF of {' x '.join(map(str, values.shape))} values, which is not a two-dimensional image"
            )
        return np.moveaxis(values[:, 0], 0, 2).reshape(height, width, self.samples)

    def _range(self, values: np.ndarray) -> tuple[float, float]:
        """Return the values that stand for black and white; refuse those beyond them."""
        low, high = 0.0, float(2 ** min(self.bits, 16) - 1)
        if self.format == _SIGNED:
            high = float(2 ** (self.bits - 1) - 1) if self.bits <= 16 else float(LARGEST_INTEGER)
        if self.format == _FLOAT:
            low, high = self._float_range()
        least, most = values.min(), values.max()
        if not (least >= low and most <= high):  # also true for NaN
            kind = {_SIGNED: "signed ", _FLOAT: "floating-point "}.get(self.format, "")
            raise ImageUnreadable(
                f"{kind}{self.bits}-bit pixels in [{least:g}, {most:g}]; only [{low:g}, {high:g}] has a known scale"
            )
        if self.format != _FLOAT and most > 0:
            self._refuse_doubtful_range(int(most), int(high))
        return low, high

    def _refuse_doubtful_range(self, most: int, white: int) -> None:
        """Refuse integers whose own range is likely a smaller one: they would come out nearly black."""
        if self.bits > 16 and most < 2**_BYTE:
            raise ImageUnreadable(
                f"{self.bits}-bit integers of at most {most}, without a known range (white may be 255 or 65535): save "
                "them as 8 or 16 bits, or as floats in [0, 1]"
            )
        for name, stated in self._narrower_ranges().items():
            if most <= stated:
                raise ImageUnreadable(
                    f"{self.bits}-bit samples, whose white is {white}, but the tag {name} states {stated} as the "
                    f"largest: scale them to {white}, or remove the tag if they are right as they are"
                )

    def _narrower_ranges(self) -> Mapping[str, int]:
        """Return what tags state as the largest value where that is all ones of 8 bits or more, but not all of them.

        Any other value is the largest in this very image (TIFF 6.0, section 8), which says nothing of its range.
        """
        if self.bits <= _BYTE or self.format == _FLOAT or self.photometric == PALETTE:
            return {}
        narrower = {2**bits - 1 for bits in range(_BYTE, min(self.bits - (self.format == _SIGNED), 16))}
        stated = {name: self._page.tags.valueof(name) for name in ("MaxSampleValue", "SMaxSampleValue")}
        known = {name: value for name, value in stated.items() if isinstance(value, int | float | tuple)}
        return {name: int(np.max(value)) for name, value in known.items() if np.max(value, initial=0) in narrower}

    def _float_range(self) -> tuple[float, float]:
        tags = self._page.tags
        ends = [tags.valueof(name) for name in ("SMinSampleValue", "SMaxSampleValue")]
        if all(isinstance(end, int | float | tuple) and np.size(end) for end in ends):
            if any(np.unique(end).size > 1 for end in ends):
                raise ImageUnreadable("a TIFF whose channels have different ranges (SMinSampleValue, SMaxSampleValue)")
            low, high = (float(np.ravel(end)[0]) for end in ends)
            if np.isfinite((low, high)).all() and low < high:
                return low, high
        return 0.0, 1.0

    def _over_black(self, values: np.ndarray) -> np.ndarray:
        """Return samples [h, w, samples] in [0, 1] as RGB or grey, [h, w, 3 or 1]."""
        colours = _COLOURS[self.photometric]
        pixels, more = values[..., :colours], values[..., colours:]
        if self.photometric == WHITE_IS_ZERO:
            pixels = 1.0 - pixels
        if self.photometric == CMYK:
            pixels = (1.0 - pixels[..., :3]) * (1.0 - pixels[..., 3:])
        return pixels * more[..., :1] if self.extra[:1] == (_UNASSOCIATED,) else pixels

    def _colour_map(self) -> np.ndarray:
        """Return [entries, 3] as stored."""
        stored = self._page.colormap
        if stored is None or np.shape(stored) != (3, 2**self.bits):
            raise ImageUnreadable(f"a palette TIFF without a colour map of {2**self.bits} entries")
        return np.asarray(stored, dtype=np.uint32).T

    def _colours(self, indices: np.ndarray) -> np.ndarray:
        """Return the colours of indices; a map without a value above 255 was written with 8 bits, as for libtiff."""
        if self.format != _UNSIGNED or self.bits > 16:
            raise ImageUnreadable(f"a palette TIFF of {self.bits}-bit samples of format {self.format}")
        colours = self._colour_map()
        found: np.ndarray = (colours >> 8 if colours.max() > 255 else colours).astype(np.uint8)[indices]
        return found


def _has_second(pages: Any) -> bool:
    try:
        return bool(pages[1])
    except IndexError:
        return bool(pages[0].subifds)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:150] or type(error).__name__


def _one_of(what: str, values: object) -> int:
    """Return the one value of a tag that has one per sample."""
    found = set(values) if isinstance(values, tuple) else {values}
    if len(found) != 1:
        raise ImageUnreadable(f"a TIFF whose channels have different {what}: {sorted(map(str, found))}")
    (value,) = found
    return int(str(value))
