"""Videos, read by FFmpeg; needs PyAV, which brings it along."""

import itertools
import math
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

from genenc_core import spec, text
from genenc_core.images.containers import arrays
from genenc_core.images.containers.container import Container, Content, Member, file_mark, one_line
from genenc_core.images.containers.frames import Frames
from genenc_core.images.decode import decode
from genenc_core.images.decode.decoded import ImageUnreadable

_FORMATS = "mov,mp4,matroska,webm,avi,mpeg,mpegts,mpegvideo,asf,flv,ogg,mxf"
_OPTIONS = {"protocol_whitelist": "file", "format_whitelist": _FORMATS}
"""A text file of another name could otherwise stand for other files, or addresses."""
_DECODING = {"err_detect": "explode"}
"""Damage is an error. What FFmpeg conceals is marked as corrupt; without concealment (`ec=0`) it would mark fewer
damaged frames, and all healthy ones of several slices."""
_SOUGHT = ("mov", "matroska", "mpegts")
"""Formats, by a part of their name, in which a seek finds packets of known times; AVI does with an index."""
_EARLIER = (0.0, 2.0, 15.0)
"""Seconds before a frame at which its key frame is looked for, before the beginning."""
_NEAR = 64
"""Frames ahead that are decoded rather than sought."""
_MISSING = 1.5
"""Seconds that a video may end before a longer stream of its file."""
_NONE = -1 << 62
_ORIENTATIONS = {
    (1, 0, 0, 1): 1,
    (-1, 0, 0, 1): 2,
    (-1, 0, 0, -1): 3,
    (1, 0, 0, -1): 4,
    (0, 1, 1, 0): 5,
    (0, 1, -1, 0): 6,
    (0, -1, -1, 0): 7,
    (0, -1, 1, 0): 8,
}
"""Signs of a display matrix (x' = a x + c y, y' = b x + d y) as a, b, c, d -> EXIF orientation."""


class TruncatedVideo(UserWarning):
    """A video has fewer frames than its header states."""


class FramesNotShown(UserWarning):
    """A video begins with frames that cannot be decoded without those before them."""


class Video(Container):
    """The first video stream; frames are numbered in the order in which they are shown, from 0.

    A frame is found by its presentation time, which planning reads of every packet without decoding any. Frames that
    follow each other are decoded once; others from the key frame before them. AVI stores no times: where it has frames
    that depend on later ones, they are counted from the beginning. So are those frames of a Matroska that it begins
    with before its time 0, which FFmpeg gives no times.
    """

    frames = True
    columns = ("frame", "time")
    """`time`: presentation time in seconds, as the file has it."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._mark = file_mark(path)
        self._file: Any = None
        self._stream: Any = None
        self._decoding: Iterator[Any] | None = None
        self._last = _NONE
        """Presentation time, or number, of the frame that was decoded last."""
        self._numbering = False
        """Whether it is a number."""
        self._counted = False
        """Whether frames are found by number, not by time."""
        self._sought = False
        """Whether a seek finds key frames."""
        self._corrupt = False
        """Whether a frame since the last key frame was corrupt: later ones are made from it."""
        self._rewind()

    @classmethod
    def open(cls, path: str, channels: spec.Channels | None = None) -> "Video":  # noqa: ARG003
        """Open it; raises as `Container.open`."""
        return cls(path)

    def _rewind(self) -> None:
        """Open the file, anew if need be: not every format can be sought to its beginning."""
        try:
            import av
        except ImportError as error:
            raise ImageUnreadable("videos need PyAV: pip install 'genenc[video]'") from error
        self.close()
        try:
            self._file = av.open(self._path, metadata_errors="replace", options=_OPTIONS)
        except (av.error.FFmpegError, ValueError) as error:
            raise ImageUnreadable(f"damaged or unsupported video: {one_line(error)}") from error
        if not self._file.streams.video:
            self.close()
            raise ImageUnreadable("it has no video stream")
        self._stream = self._file.streams.video[0]
        self._stream.thread_type = "NONE"  # one thread: frames are decoded in parallel processes already
        self._stream.codec_context.options = _DECODING
        name = self._file.format.name
        without_times = "avi" in name or "asf" in name
        self._counted = without_times and bool(self._stream.codec_context.has_b_frames)
        # Reading adds what it comes by to the index of an AVI: only one of all frames is the file's own.
        indexed = "avi" in name and 0 < self._stream.frames <= len(getattr(self._stream, "index_entries", ()))
        self._sought = indexed or any(each in name for each in _SOUGHT)
        self._last = _NONE

    def members(self, frames: Frames) -> Iterator[Member]:
        """Yield the frames, with their times."""
        early, times = self._presentation_times()
        base = 1 / self._stream.average_rate if self._counted else self._stream.time_base
        seconds = [float(time * base) for time in times]
        if early and frames.per_second is not None:
            raise ImageUnreadable(
                f"its first {early} frames are before its time 0, and FFmpeg does not say by how much: choose frames "
                "by number, or write it again, as MP4 for example"
            )
        for index in frames.of(early + len(times), None if early else seconds):
            at = str(index) if self._counted or index < early else f"{index}@{times[index - early]}"
            time = "" if index < early else f"{seconds[index - early]:.9g}"
            yield Member(f"#{index}", at, (str(index), time))

    def _presentation_times(self) -> tuple[int, list[int]]:
        """Return how many frames have no times, and the times of the others in units of the stream; ascending.

        Where frames are counted, their numbers are their times.

        Raises:
            ImageUnreadable: there is none, or two frames have the same.
        """
        import av

        self._rewind()
        try:
            found = list(self._numbers() if self._counted else self._times_of_packets())
        except (av.error.FFmpegError, ValueError) as error:
            raise ImageUnreadable(f"damaged video: {one_line(error)}") from error
        times = sorted(time for time in found if time is not None)
        if times and len(times) < len(found) and "matroska" in self._file.format.name:
            return self._decoded_times(len(found), times)
        if not times or len(times) < len(found):
            raise ImageUnreadable("its frames have no times: write it again, as MP4 for example")
        if len(set(times)) < len(times):
            raise ImageUnreadable("several of its frames have the same time: write it again, as MP4 for example")
        return 0, times if self._counted else self._shown(times)

    def _shown(self, times: list[int]) -> list[int]:
        """Return the times of the frames that are shown.

        A video that was cut without encoding it again may begin with frames that need others before them: no decoder
        shows these.
        """
        self._rewind()
        self._stream.codec_context.options = {}  # as others decode, who number its frames
        packets = self._file.demux(self._stream)
        first = next((frame.pts for packet in packets for frame in _decoded(packet) if frame.pts is not None), None)
        self._rewind()
        shown = [time for time in times if first is not None and time >= first]
        if len(shown) < len(times) and shown:
            warnings.warn(
                f"{self._path} begins with {text.plural(len(times) - len(shown), 'frame')} that no decoder shows, "
                "since it was cut: they are not counted",
                FramesNotShown,
                stacklevel=3,
            )
        return shown or times

    def _decoded_times(self, count: int, times: list[int]) -> tuple[int, list[int]]:
        """Return as `_presentation_times`, of a file of `count` frames that may begin before its time 0.

        The order of decoded frames is that in which they are shown.
        """
        import av

        self._rewind()
        try:
            found = [frame.pts for frame in self._file.decode(self._stream)]
        except (av.error.FFmpegError, ValueError) as error:
            raise ImageUnreadable(f"damaged video: {one_line(error)}") from error
        early = len(found) - len(times)
        if len(found) != count or found[early:] != times or len({*times}) < len(times) or {*found[:early]} != {None}:
            raise ImageUnreadable("some of its frames have no times: write it again, as MP4 for example")
        return early, times

    def _times_of_packets(self) -> Iterator[int | None]:
        count = end = 0
        rate = self._stream.average_rate
        usual = int(1 / (rate * self._stream.time_base)) if rate else 0
        for packet in self._file.demux(self._stream):
            if packet.dts is None and not packet.size:  # the end
                continue
            count, end = count + 1, max(end, (packet.pts or 0) + (packet.duration or usual))
            if packet.size and not packet.is_discard:
                yield packet.pts
        self._warn_if_truncated(count, float(end * self._stream.time_base))

    def _may_be_missing(self) -> float:
        """Return the seconds that the video may end before its file's longest stream does."""
        rate = self._stream.average_rate
        return float(0.9 / rate) if rate and len(self._file.streams) == 1 else _MISSING

    def _numbers(self) -> Iterator[int]:
        for number, _ in enumerate(self._file.decode(self._stream)):
            yield number

    def _warn_if_truncated(self, count: int, end: float) -> None:
        """Warn if there are fewer frames than the file's header says; the last one ends at `end`, in seconds."""
        length = (self._file.duration or 0) / 1e6
        rate = self._stream.average_rate
        # A header also counts frames that an edit list leaves out.
        if count < self._stream.frames and length - end > (0.5 / rate if rate else 0):
            reason = f"{count} of the {self._stream.frames} frames that its header states"
        elif not self._stream.frames and length - end > self._may_be_missing():
            reason = f"{end:.1f} of the {length:.1f} s that its header states"
        else:
            return
        warnings.warn(f"{self._path} holds {reason}: it seems to be truncated", TruncatedVideo, stacklevel=3)

    def read(self, at: str, *, most_pixels: int = decode.MAX_PIXELS) -> Content:
        """Return a frame; raises as `Container.read`."""
        import av

        index, _, time = at.partition("@")
        size = (self._stream.height, self._stream.width)
        decode.check_size(*size, most_pixels)
        try:
            frame = self._at(int(time)) if time else self._numbered(int(index))
        except (av.error.FFmpegError, ValueError) as error:
            self._decoding = None
            raise ImageUnreadable(f"damaged video: {one_line(error)}") from error
        if frame is None or self._corrupt or (frame.height, frame.width) != size:
            raise ImageUnreadable(f"frame {index} is missing or damaged: the video is damaged or truncated")
        with_alpha = any(component.is_alpha for component in frame.format.components)
        values = np.ascontiguousarray(frame.to_ndarray(format="rgba" if with_alpha else "rgb24"))
        return Content(b"", file_mark(self._path), arrays.rgb(values), values.data.cast("B"), _orientation(frame))

    def _at(self, wanted: int) -> Any:
        """Return the frame of a presentation time; None if there is none."""
        if self._decoding is not None and not self._numbering and 0 < wanted - self._last <= self._far():
            found = self._decoded_until(wanted)
            if found is not None:
                return found
        for place in (*(wanted - round(each / self._stream.time_base) for each in self._earlier()), None):
            if not self._seek(place, wanted):
                continue
            found = self._decoded_until(wanted)
            if found is not None:
                return found
        return None

    def _earlier(self) -> tuple[float, ...]:
        """Return the seconds before a frame at which to look for its key frame; () for formats that cannot be sought.

        Others are decoded from the beginning: their packets have times that a seek loses (MPEG program streams), or
        none, or pictures that are called key frames and are not (AVI without an index).
        """
        return _EARLIER if self._sought else ()

    def _far(self) -> float:
        """Return the time, in units of the stream, from which on seeking is faster than decoding."""
        if not self._sought:
            return math.inf
        rate = self._stream.average_rate
        return float(_NEAR / (rate * self._stream.time_base)) if rate else 0.0

    def _decoded_until(self, wanted: int) -> Any:
        """Decode up to a presentation time; return its frame, or None if it was passed or the video ended."""
        for frame in self._frames():
            if frame.pts is None:
                continue
            self._last = frame.pts
            if frame.pts == wanted:
                return frame
            if frame.pts > wanted:
                break
        self._decoding = None
        return None

    def _frames(self) -> Iterator[Any]:
        """Yield the next frames."""
        assert self._decoding is not None
        for frame in self._decoding:
            self._corrupt = frame.is_corrupt or (self._corrupt and not frame.key_frame)
            yield frame

    def _numbered(self, wanted: int) -> Any:
        """Return a frame by its number, counted from the beginning; None if there is none."""
        if self._decoding is None or self._last >= wanted or not self._numbering:
            self._seek(None, wanted)
            self._last, self._numbering = -1, True
        for frame in self._frames():
            self._last += 1
            if self._last == wanted:
                return frame
        self._decoding = None
        return None

    def _seek(self, place: int | None, wanted: int) -> bool:
        """Go to a key frame near a presentation time, or to the beginning; return whether it is before `wanted`."""
        self._last, self._numbering, self._corrupt = _NONE, False, False
        if place is None:
            self._rewind()
            self._decoding = self._file.decode(self._stream)
            return True
        self._decoding = None
        self._file.seek(place, stream=self._stream, backward=True)
        self._stream.codec_context.flush_buffers()
        packets = self._file.demux(self._stream)
        first = next((each for each in packets if each.is_keyframe and each.pts is not None), None)
        if first is None or first.pts > wanted:
            return False
        self._decoding = _decoded_from(first, packets)
        return True

    def close(self) -> None:
        """Close it."""
        self._decoding = None
        if self._file is not None:
            self._file.close()


def _decoded(packet: Any) -> list[Any]:
    """Return the frames that a packet completes; none of a packet that cannot be decoded."""
    import av

    try:
        found: list[Any] = packet.decode()
    except (av.error.FFmpegError, ValueError):
        return []
    return found


def _decoded_from(first: Any, packets: Iterator[Any]) -> Iterator[Any]:
    """Yield the frames from a key frame on; those that are shown before it may need others before it."""
    for packet in itertools.chain([first], packets):
        leads = packet.pts is not None and packet.pts < first.pts
        for frame in _decoded(packet) if leads else packet.decode():
            if frame.pts is None or frame.pts >= first.pts:
                yield frame


def _orientation(frame: Any) -> int:
    """Return the EXIF orientation that a frame's display matrix stands for.

    Raises:
        ImageUnreadable: it turns by no multiple of 90 degrees.
    """
    from av.sidedata.sidedata import Type

    found = frame.side_data.get(Type.DISPLAYMATRIX)
    if found is None:
        return 1
    across, down, _, right, below, *_ = np.sign(np.frombuffer(bytes(found), np.int32)).tolist()
    turned = _ORIENTATIONS.get((across, down, right, below))
    if turned is None:
        raise ImageUnreadable("its frames are turned by another angle than 90, 180 or 270 degrees")
    return turned
