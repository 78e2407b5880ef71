"""Videos, read by FFmpeg; needs PyAV, which brings it along."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from genenc_core.images.containers.container import Container, Content, Mark, Member, file_mark, one_line
from genenc_core.images.containers.frames import Frames
from genenc_core.images.decode import decode
from genenc_core.images.decode.decoded import ImageUnreadable

_NONE = -1 << 62
_NEAR = 64
"""Frames ahead that are decoded rather than sought."""


class Video(Container):
    """The first video stream; frames are numbered in the order in which they are shown, from 0.

    A frame is found by its presentation time, which planning reads of every packet without decoding any. Frames that
    follow each other are decoded once; others from the key frame before them. AVI stores no times: where it has frames
    that depend on later ones, they are counted from the beginning.
    """

    frames = True
    columns = ("frame", "time")
    """`time`: presentation time in seconds, as the file has it."""

    def __init__(self, path: str, file: Any) -> None:
        self._path = path
        self._file = file
        self._mark = file_mark(path)
        if not file.streams.video:
            raise ImageUnreadable("it has no video stream")
        self._stream = file.streams.video[0]
        self._stream.thread_type = "NONE"  # one thread: frames are decoded in parallel processes already
        self._decoding: Iterator[Any] | None = None
        self._last = _NONE
        """Presentation time, or number, of the frame that was decoded last."""
        self._counted = "avi" in file.format.name and bool(self._stream.codec_context.has_b_frames)

    @classmethod
    def open(cls, path: str) -> "Video":
        """Open it; raises as `Container.open`."""
        try:
            import av
        except ImportError as error:
            raise ImageUnreadable("videos need PyAV: pip install 'genenc[video]'") from error
        file_mark(path)
        try:
            file = av.open(path, metadata_errors="replace", options={"protocol_whitelist": "file"})
        except (av.error.FFmpegError, ValueError) as error:
            raise ImageUnreadable(f"damaged or unsupported video: {one_line(error)}") from error
        try:
            return cls(path, file)
        except BaseException:
            file.close()
            raise

    def members(self, frames: Frames) -> Iterator[Member]:
        """Yield the frames, with their times."""
        times = self._presentation_times()
        base = 1 / self._stream.average_rate if self._counted else self._stream.time_base
        seconds = [float(time * base) for time in times]
        for index in frames.of(len(times), seconds):
            at = str(index) if self._counted else f"{index}@{times[index]}"
            yield Member(f"#{index}", at, (str(index), f"{seconds[index]:.9g}"))

    def _presentation_times(self) -> list[int]:
        """Return the times of all frames in units of the stream, or their numbers if they are counted; ascending.

        Raises:
            ImageUnreadable: there is none, or two frames have the same.
        """
        import av

        self._decoding = None
        try:
            self._file.seek(0)
            found = list(self._numbers() if self._counted else self._times_of_packets())
        except (av.error.FFmpegError, ValueError) as error:
            raise ImageUnreadable(f"damaged video: {one_line(error)}") from error
        times = sorted(time for time in found if time is not None)
        if not times or len(times) < len(found):
            raise ImageUnreadable("its frames have no times: write it again, as MP4 for example")
        if len(set(times)) < len(times):
            raise ImageUnreadable("several of its frames have the same time: write it again, as MP4 for example")
        return times

    def _times_of_packets(self) -> Iterator[int | None]:
        for packet in self._file.demux(self._stream):
            if packet.size and not packet.is_discard:
                yield packet.pts

    def _numbers(self) -> Iterator[int]:
        self._stream.codec_context.flush_buffers()
        for number, _ in enumerate(self._file.decode(self._stream)):
            yield number

    def left_out(self) -> Iterator[str]:
        """Yield nothing."""
        yield from ()

    def mark(self, at: str) -> Mark:  # noqa: ARG002
        """Return the file's mark."""
        return self._mark

    def read(self, at: str, *, most_pixels: int = decode.MAX_PIXELS) -> Content:
        """Return a frame; raises as `Container.read`."""
        import av

        index, _, time = at.partition("@")
        decode.check_size(self._stream.height, self._stream.width, most_pixels)
        try:
            frame = self._frame(int(time)) if time else self._numbered(int(index))
        except (av.error.FFmpegError, ValueError) as error:
            self._decoding = None
            raise ImageUnreadable(f"damaged video: {one_line(error)}") from error
        if frame is None or frame.is_corrupt:
            raise ImageUnreadable(f"frame {index} is missing or damaged: the video is damaged or truncated")
        pixels = np.ascontiguousarray(frame.to_ndarray(format="rgb24"))
        turned = _ORIENTATIONS.get(round(getattr(frame, "rotation", 0)) % 360, 1)
        return Content(b"", file_mark(self._path), pixels, pixels.data.cast("B"), turned)

    def _frame(self, wanted: int) -> Any:
        """Return the frame of a presentation time; None if there is none."""
        if self._decoding is not None and 0 < wanted - self._last <= self._far():
            found = self._decoded_until(wanted)
            if found is not None:
                return found
        # Formats without an index may not find the key frame before it; the beginning always is.
        for place in (wanted, None):
            self._seek(place)
            found = self._decoded_until(wanted)
            if found is not None:
                return found
        return None

    def _far(self) -> float:
        """Return the time, in units of the stream, from which on seeking is faster than decoding."""
        rate = self._stream.average_rate
        return float(_NEAR / (rate * self._stream.time_base)) if rate else 0.0

    def _decoded_until(self, wanted: int) -> Any:
        """Decode up to a presentation time; return its frame, or None if it was passed or the video ended."""
        assert self._decoding is not None
        for frame in self._decoding:
            if frame.pts is None:
                continue
            self._last = frame.pts
            if frame.pts == wanted:
                return frame
            if frame.pts > wanted:
                break
        self._decoding = None
        return None

    def _numbered(self, wanted: int) -> Any:
        """Return a frame by its number, counted from the beginning; None if there is none."""
        if self._decoding is None or self._last >= wanted:
            self._seek(None)
            self._last = -1
        assert self._decoding is not None
        for frame in self._decoding:
            self._last += 1
            if self._last == wanted:
                return frame
        self._decoding = None
        return None

    def _seek(self, wanted: int | None) -> None:
        """Go to the key frame before a presentation time, or to the beginning."""
        if wanted is None:
            self._file.seek(0)
        else:
            self._file.seek(wanted, stream=self._stream, backward=True)
        self._stream.codec_context.flush_buffers()
        self._decoding = self._file.decode(self._stream)
        self._last = _NONE

    def close(self) -> None:
        """Close it."""
        self._decoding = None
        self._file.close()


_ORIENTATIONS = {0: 1, 90: 8, 180: 3, 270: 6}
"""PyAV's counterclockwise degrees -> EXIF orientation."""
