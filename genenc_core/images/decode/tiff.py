"""TIFF pages by their tags: which ones Pillow reads correctly, which tifffile does, and which are rejected."""

import io
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import TiffImagePlugin

from genenc_core.images.decode.decoded import ImageUnreadable, bands

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK, YCBCR = 0, 1, 2, 3, 5, 6
"""PhotometricInterpretation, TIFF 6.0 page 37."""
_UNSIGNED, _SIGNED, _FLOAT = 1, 2, 3
_UNSPECIFIED, _UNASSOCIATED = 0, 2
_CMYK_INKS = 1
"""InkSet, TIFF 6.0 page 70."""
_JPEG = (6, 7)
_WEBP = 50001
_LOSSLESS = (8, 32773, 32946, 50000)
"""Deflate, PackBits, Zstandard: for damaged strips libtiff, and thus Pillow, returns what it has decoded so far."""
_FAX = (2, 3, 4)
"""CCITT: modified Huffman, T.4, T.6."""
_MOST_ZEROS = 16
_YCBCR_JPEG_2000 = 33003
"""Aperio: the codestream is YCbCr whatever PhotometricInterpretation states."""
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
"""Integers of more than 16 bits are treated as 16-bit up to this value."""
_BYTE = 8
_GDAL_METADATA = 42112
_SCALE = re.compile(r'role="(scale|offset)"[^>]*>\s*([-+0-9.eE]+)\s*<')
logging.getLogger("tifffile").addHandler(logging.NullHandler())  # what it says of odd tags names no file
_PILLOW_READS = frozenset(
    {
        *((WHITE_IS_ZERO, 1, 1), (BLACK_IS_ZERO, 1, 1), (WHITE_IS_ZERO, 8, 1), (BLACK_IS_ZERO, 8, 1)),
        *((BLACK_IS_ZERO, 16, 1), (RGB, 8, 3), (RGB, 8, 4), (CMYK, 8, 4)),
    }
)
"""Photometric interpretation, bits, samples."""


class Page:
    """A page of a TIFF.

    Raises:
        ImageUnreadable: no page, a truncated one, or inconsistent tags.
    """

    def __init__(self, tiff: Any, index: int = 0) -> None:
        """Take a page of an open `tifffile.TiffFile`."""
        try:
            self._file = tiff.filehandle
            self._page: Any = tiff.pages[index]
            if not index and self._page.is_reduced and _has_second(tiff.pages):
                raise ImageUnreadable(
                    "the first page of this TIFF is a reduced version of another (NewSubfileType 1): write the full "
                    "image first, or only that"
                )
            self._read_tags()
            sparse = _is_sparse(self._page.dataoffsets, self._page.databytecounts)
            missing = not sparse and (self._lacks_strips(self._file.size) or self._ends_in_zeros())
        except ImageUnreadable:
            raise
        except Exception as error:  # the parser may raise anything for damaged data
            raise ImageUnreadable(f"damaged TIFF: {reason(error)}") from error
        self.big = bool(tiff.is_bigtiff)
        if min(self.height, self.width, self.samples) < 1:
            raise ImageUnreadable(f"damaged TIFF: {self.width} x {self.height} pixels of {self.samples} samples")
        if sparse:
            raise ImageUnreadable(
                "sparse TIFF: some of its tiles or strips were never written; write them, with gdal_translate -co "
                "SPARSE_OK=FALSE, if they stand for no data"
            )
        if missing:
            raise ImageUnreadable("truncated TIFF: some of its pixels are missing")

    @classmethod
    def first(cls, data: bytes | bytearray) -> "Page":
        """Return the first page of a file's bytes."""
        import tifffile

        try:
            tiff = tifffile.TiffFile(io.BytesIO(data))
        except Exception as error:
            raise ImageUnreadable(f"damaged TIFF: {reason(error)}") from error
        return cls(tiff)

    def _read_tags(self) -> None:
        tags = self._page.tags
        self.height, self.width = int(self._page.imagelength), int(self._page.imagewidth)
        self.samples = int(self._page.samplesperpixel)
        self.bits = _one_of("bits per sample", tags.valueof("BitsPerSample", 1))
        self.format = _one_of("sample formats", tags.valueof("SampleFormat", _UNSIGNED))
        self.photometric = int(tags.valueof("PhotometricInterpretation", -1))
        self.compression = int(self._page.compression)
        self._separate = int(self._page.planarconfig) == 2
        self.planar = self._separate and self.samples > 1
        extra = tags.valueof("ExtraSamples", ())
        self.extra = tuple(map(int, extra if isinstance(extra, tuple) else (extra,)))
        orientation = tags.valueof("Orientation", 1)
        self.orientation = orientation if isinstance(orientation, int) else 1
        self._refuse_other_kinds(int(tags.valueof("ImageDepth", 1)), int(tags.valueof("InkSet", _CMYK_INKS)))

    def _refuse_other_kinds(self, depth: int, inks: int) -> None:
        """Reject kinds of images that readers interpret in different ways."""
        if depth != 1:
            raise ImageUnreadable(f"unsupported TIFF with {depth} planes (ImageDepth): write each plane as an image")
        if self.photometric == CMYK and inks != _CMYK_INKS:
            raise ImageUnreadable("unsupported TIFF with inks other than CMYK: convert it to RGB")

    def _lacks_strips(self, size: int) -> bool:
        offsets, counts = self._page.dataoffsets, self._page.databytecounts
        ends = [offset + count for offset, count in zip(offsets, counts, strict=True)]
        return not ends or min(counts) <= 0 or max(ends) > size

    def _ends_in_zeros(self) -> bool:
        """Return whether fax lines end in zeros, of which libtiff makes white ones; encoders write 1 at most."""
        if self.compression not in _FAX:
            return False
        for offset, size in zip(self._page.dataoffsets, self._page.databytecounts, strict=True):
            self._file.seek(offset)
            if self._file.read(size).endswith(bytes(_MOST_ZEROS)):
                return True
        return False

    @property
    def pillow_reads(self) -> bool:
        """Whether Pillow reads such a page correctly, as tested against other readers."""
        if self.format != _UNSIGNED or self.big or self._separate or self.compression in _LOSSLESS:
            return False
        if self.compression not in TiffImagePlugin.COMPRESSION_INFO or self.compression == _WEBP:  # not in every build
            return False
        if self.photometric == YCBCR:
            return self.compression in _JPEG and (self.bits, self.samples) == (8, 3)
        if self._narrower_ranges() or self._has_unknown_channel() or self.stated_scale():
            return False
        # Pillow takes an untagged channel for alpha, and divides and multiplies by associated alpha.
        if self.photometric == RGB and self.samples > 3 and self.extra[:1] not in ((_UNSPECIFIED,), (_UNASSOCIATED,)):
            return False
        if (self.photometric, self.bits, self.samples) == (PALETTE, 8, 1):
            return bool(self._colour_map().max() > 255)
        return (self.photometric, self.bits, self.samples) in _PILLOW_READS

    def _has_unknown_channel(self) -> bool:
        """Return whether there is a second channel besides grey that is not tagged as alpha."""
        return _COLOURS.get(self.photometric) == 1 and self.samples == 2 and self.extra[:1] not in ((1,), (2,))

    def rgb(self) -> np.ndarray:
        """Return uint8 `[H, W, 3]` as stored, not yet upright.

        Unsigned samples are scaled by their bits, signed ones from 0 to their maximum, integers of more than 16 bits as
        16 bits, floats by the tags SMinSampleValue and SMaxSampleValue, or from 0 to 1. Unassociated alpha is
        composited over black.

        Raises:
            ImageUnreadable: damaged, not convertible to RGB, or values with an unknown range.
        """
        self._check()
        if scale := self.stated_scale():
            raise ImageUnreadable(
                f"it states {scale}: its numbers stand for others. Give --channels with the --value-range of the "
                "numbers that are stored, or save these others, as floats in [0, 1]"
            )
        samples = self._samples()
        if self.photometric == PALETTE:
            colours = self._colours(samples[..., 0])
            if self._has_alpha(samples):
                colours = np.rint(colours * (samples[..., 1:] / (2**self.bits - 1))).astype(np.uint8)
            return colours
        low, high = self._range(samples)
        with_alpha = self._has_alpha(samples)
        pixels = np.empty((self.height, self.width, 3), dtype=np.uint8)
        for rows in bands(self.height, self.width):
            values = (samples[rows].astype(np.float64) - low) / (high - low)
            pixels[rows] = np.rint(self._over_black(values, with_alpha=with_alpha) * 255)
        return pixels

    def _check(self) -> None:
        if self.photometric in _REFUSED:
            raise ImageUnreadable(f"unsupported TIFF of {_REFUSED[self.photometric]}: convert it to RGB or grey")
        is_jpeg = self.compression == _JPEG[1] and self.bits == 8 and not self.planar
        is_ycbcr = self.photometric == YCBCR or self.compression == _YCBCR_JPEG_2000
        if is_ycbcr and not is_jpeg:  # tifffile converts a JPEG to RGB
            raise ImageUnreadable(
                f"unsupported YCbCr TIFF that is not 8-bit JPEG (compression {self.compression}): convert it to RGB"
            )
        if self.photometric not in _COLOURS:
            raise ImageUnreadable(f"unsupported TIFF of unknown kind (PhotometricInterpretation {self.photometric})")
        colours = _COLOURS[self.photometric]
        if not colours <= self.samples <= colours + 1 or self._has_unknown_channel():
            raise ImageUnreadable(
                f"TIFF with {self.samples} channels where {colours} are expected: convert it to RGB or grey, or "
                "choose channels for a model of as many with --channels"
            )
        if self.format not in (_UNSIGNED, _SIGNED, _FLOAT):
            raise ImageUnreadable(f"unsupported TIFF sample format (SampleFormat {self.format})")

    def _samples(self) -> np.ndarray:
        """Return the samples as stored, `[H, W, samples]`."""
        try:
            # One thread: images are decoded in parallel already.
            values = np.asarray(self._page.asarray(maxworkers=1, squeeze=False))
        except MemoryError:
            raise
        except Exception as error:  # codecs raise their own exceptions
            raise ImageUnreadable(f"damaged or unsupported TIFF: {reason(error)}") from error
        planes, depth, height, width, contiguous = values.shape
        if depth != 1 or (height, width) != (self.height, self.width) or planes * contiguous != self.samples:
            raise ImageUnreadable(
                f"unsupported TIFF of shape {' x '.join(map(str, values.shape))}, which is not a two-dimensional image"
            )
        return np.moveaxis(values[:, 0], 0, 2).reshape(height, width, self.samples)

    def stored(self) -> np.ndarray:
        """Return all samples as stored, `[H, W, samples]`, each of which is a channel.

        Raises:
            ImageUnreadable: damaged, or samples that are no numbers.
        """
        if self.format not in (_UNSIGNED, _SIGNED, _FLOAT):
            raise ImageUnreadable(f"unsupported TIFF sample format (SampleFormat {self.format})")
        return self._samples()

    def known_range(self, values: np.ndarray) -> tuple[tuple[float, float] | None, str]:
        """Return the values of black and white by the page's tags, or None and why they are not known."""
        if self.format == _FLOAT:
            try:
                return self._float_range(), ""
            except ImageUnreadable as error:
                return None, str(error)
        if self.bits > 16:
            return None, f"{self.bits}-bit integers have no known range"
        for name, stated in self._narrower_ranges().items():
            if values.max() <= stated:
                return None, f"{self.bits}-bit samples, but the tag {name} states a maximum of {stated}"
        return (0.0, float(2 ** (self.bits - (self.format == _SIGNED)) - 1)), ""

    def stated_scale(self) -> str:
        """Return the scale and offset of a band that GDAL's metadata state, if they change its values; else ""."""
        found = _SCALE.findall(str(self.tag(_GDAL_METADATA) or ""))
        stated = [(role, number) for role, number in found if float(number) != (role == "scale")]
        return " and ".join(dict.fromkeys(f"the {role} {number}" for role, number in stated))

    def tag(self, number: int) -> object:
        """Return the value of a tag; None if there is none."""
        return self._page.tags.valueof(number)

    def _range(self, values: np.ndarray) -> tuple[float, float]:
        """Return the values of black and white; reject values outside them."""
        low, high = 0.0, float(2 ** min(self.bits, 16) - 1)
        if self.format == _SIGNED:
            high = float(2 ** (self.bits - 1) - 1) if self.bits <= 16 else float(LARGEST_INTEGER)
        if self.format == _FLOAT:
            low, high = self._float_range()
        smallest, largest = values.min(), values.max()
        if not (smallest >= low and largest <= high):  # also true for NaN
            kind = {_SIGNED: "signed ", _FLOAT: "floating-point "}.get(self.format, "")
            raise ImageUnreadable(
                f"{kind}{self.bits}-bit pixels in [{smallest:g}, {largest:g}]; only [{low:g}, {high:g}] has a known "
                "scale"
            )
        if self.format != _FLOAT and largest > 0:
            self._refuse_doubtful_range(int(largest), int(high))
        return low, high

    def _refuse_doubtful_range(self, largest: int, white: int) -> None:
        """Reject integers whose real range is probably smaller, since they would come out nearly black."""
        if self.bits > 16 and largest < 2**_BYTE:
            raise ImageUnreadable(
                f"{self.bits}-bit integers of at most {largest}, without a known range (white may be 255 or 65535): "
                "save them as 8 or 16 bits, or as floats in [0, 1]"
            )
        for name, stated in self._narrower_ranges().items():
            if largest <= stated:
                raise ImageUnreadable(
                    f"{self.bits}-bit samples with white at {white}, but the tag {name} states a maximum of {stated}: "
                    f"scale them to {white}, or remove the tag if the samples are right"
                )

    def _narrower_ranges(self) -> Mapping[str, int]:
        """Return tagged maxima of the form 2**n - 1 with 8 or more bits, but fewer than the samples have.

        Any other value is the maximum of this image (TIFF 6.0, section 8), not of its range.
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
                raise ImageUnreadable("TIFF channels have different ranges (SMinSampleValue, SMaxSampleValue)")
            low, high = (float(np.ravel(end)[0]) for end in ends)
            if np.isfinite((low, high)).all() and low < high:
                return low, high
        return 0.0, 1.0

    def _has_alpha(self, samples: np.ndarray) -> bool:
        """Return whether samples `[H, W, samples]` have an alpha channel that is not zero everywhere."""
        more = samples[..., _COLOURS.get(self.photometric, 1) :]
        return self.extra[:1] == (_UNASSOCIATED,) and bool(more[..., :1].any())

    def _over_black(self, values: np.ndarray, *, with_alpha: bool) -> np.ndarray:
        """Return samples `[h, w, samples]` in [0, 1] as RGB or grey, `[h, w, 3 or 1]`."""
        colours = _COLOURS[self.photometric]
        pixels, more = values[..., :colours], values[..., colours:]
        if self.photometric == WHITE_IS_ZERO:
            pixels = 1.0 - pixels
        if self.photometric == CMYK:
            pixels = (1.0 - pixels[..., :3]) * (1.0 - pixels[..., 3:])
        return pixels * more[..., :1] if with_alpha else pixels

    def _colour_map(self) -> np.ndarray:
        """Return the colour map, `[entries, 3]`, as stored."""
        stored = self._page.colormap
        if stored is None or np.shape(stored) != (3, 2**self.bits):
            raise ImageUnreadable(f"palette TIFF without a colour map of {2**self.bits} entries")
        return np.asarray(stored, dtype=np.uint32).T

    def _colours(self, indices: np.ndarray) -> np.ndarray:
        """Look up indices in the colour map, which is 8-bit if it has no value above 255, as in libtiff."""
        if self.format != _UNSIGNED or self.bits > 16:
            raise ImageUnreadable(f"unsupported palette TIFF of {self.bits}-bit samples of format {self.format}")
        colours = self._colour_map()
        rgb: np.ndarray = (colours >> 8 if colours.max() > 255 else colours).astype(np.uint8)[indices]
        return rgb


def has_planes_behind(tiff: Any) -> bool:
    """Return whether the one page of an open TIFF has planes behind it, as ImageJ and tifffile write them."""
    return len(tiff.pages) == 1 and planes(tiff) > planes_of_pages(tiff)


def planes(tiff: Any) -> int:
    """Return the number of values of all images of an open TIFF that ImageJ, MetaMorph or tifffile wrote, else 0."""
    marked = tiff.is_imagej or tiff.is_stk or tiff.is_shaped
    return sum(int(each.size) for each in tiff.series) if marked else 0


def planes_of_pages(tiff: Any) -> int:
    """Return the number of values of all pages of an open TIFF."""
    return sum(int(page.size) for page in tiff.pages)


def _has_second(pages: Any) -> bool:
    try:
        return bool(pages[1])
    except IndexError:
        return bool(pages[0].subifds)


def _is_sparse(offsets: Sequence[int], counts: Sequence[int]) -> bool:
    """Return whether some strips or tiles, but not all, have neither place nor bytes, as GDAL leaves out empty ones."""
    empty = [offset == count == 0 for offset, count in zip(offsets, counts, strict=True)]
    return any(empty) and not all(empty)


def reason(error: Exception) -> str:
    """Return a parser's error in one short line."""
    return " ".join(str(error).split())[:150] or type(error).__name__


def _one_of(what: str, values: object) -> int:
    """Return the common value of a tag that has one per sample."""
    unique = set(values) if isinstance(values, tuple) else {values}
    if len(unique) != 1:
        raise ImageUnreadable(f"TIFF channels have different {what}: {sorted(map(str, unique))}")
    (value,) = unique
    return int(str(value))
