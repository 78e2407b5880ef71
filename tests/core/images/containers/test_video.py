"""Videos: every frame is the one that plain decoding from the beginning gives, whatever the order of reading."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import containers
from genenc_core.images.containers import frames, kinds

av: Any = pytest.importorskip("av")
COUNT = 60


def moving(count: int = COUNT, height: int = 48, width: int = 64) -> list[np.ndarray]:
    """Return frames that differ clearly, also after lossy compression: a bar at the frame's number."""
    shown = np.full((count, height, width, 3), 32, np.uint8)
    for index in range(count):
        shown[index, :, index : index + 4] = 220
    return list(shown)


def decoded(path: Path) -> tuple[list[np.ndarray], list[float]]:
    """Return all frames and their times, decoded in order without seeking."""
    with av.open(str(path)) as file:
        found = [(frame.to_ndarray(format="rgb24"), float(frame.time)) for frame in file.decode(video=0)]
    return [pixels for pixels, _ in found], [time for _, time in found]


CODECS = [
    ("libx264", "clip.mp4", {"bf": "3", "g": "12"}),
    ("libx264", "clip.mkv", {"bf": "2", "g": "250"}),
    ("mpeg4", "clip.avi", {"g": "10"}),
    ("libx264", "b-frames.avi", {"bf": "3", "g": "12"}),
    ("mpeg4", "b-frames4.avi", {"bf": "2", "g": "10"}),
    ("mpeg2video", "clip.mpg", {"bf": "2", "g": "9"}),
    ("libvpx-vp9", "clip.webm", {"g": "15"}),
    ("mjpeg", "clip.mov", {}),
]


@pytest.mark.parametrize(("codec", "name", "options"), CODECS)
def test_any_frame_is_that_of_plain_decoding(codec: str, name: str, options: dict[str, str], tmp_path: Path) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"no {codec} in this FFmpeg")
    path = containers.write_video(tmp_path, moving(), codec=codec, name=name, **options)
    wanted, times = decoded(path)
    video = kinds.open_container(str(path))
    members = list(video.members(frames.Frames()))
    assert [member.name for member in members] == [f"#{index}" for index in range(len(wanted))]
    assert len(wanted) == COUNT
    forwards = list(range(COUNT))
    for order in (forwards, forwards[::-1], forwards[::7], np.random.default_rng(0).permutation(COUNT).tolist()):
        for index in order:
            pixels = video.read(members[index].at).pixels
            np.testing.assert_array_equal(pixels, wanted[index])
    per_second = [int(member.name[1:]) for member in video.members(frames.Frames.parse("3/s"))]
    if name == "b-frames.avi":  # which has no times
        times = [index / 30 for index in range(COUNT)]
    first = times[0]
    expected = [min(i for i, time in enumerate(times) if time - first >= step / 3 - 1.1e-3) for step in range(6)]
    assert per_second == expected
    video.close()


def test_frames_of_unequal_length(tmp_path: Path) -> None:
    path, steps = tmp_path / "clip.mkv", [0, 40, 50, 500, 510, 2000, 2001, 2500]
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=1000)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        for time, pixels in zip(steps, moving(len(steps)), strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = time, stream.codec_context.time_base
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    wanted, _ = decoded(path)
    video = kinds.open_container(str(path))
    members = list(video.members(frames.Frames()))
    assert len(members) == len(steps)
    for index in (7, 0, 5, 6, 2):
        np.testing.assert_array_equal(video.read(members[index].at).pixels, wanted[index])
    assert [member.name for member in video.members(frames.Frames.parse("1/s"))] == ["#0", "#5"]
    video.close()


def test_a_turned_video_is_upright(tmp_path: Path) -> None:
    """As a phone writes it: the frames lie, and a matrix says how to turn them."""
    shown = moving(5)
    for frame in shown:
        frame[:8] = (255, 0, 0)
    path = containers.write_video(tmp_path, shown, codec="mpeg4", name="clip.mp4")
    data = path.read_bytes()
    plain = b"".join(number.to_bytes(4, "big") for number in (65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30))
    assert data.count(plain) == 2  # of the movie and the track
    turned = b"".join(
        (number % (1 << 32)).to_bytes(4, "big") for number in (0, 65536, 0, -65536, 0, 0, 48 << 16, 0, 1 << 30)
    )
    at = data.rindex(plain)
    path.write_bytes(data[:at] + turned + data[at + len(plain) :])
    video = kinds.open_container(str(path))
    member = next(iter(video.members(frames.Frames())))
    content = video.read(member.at)
    assert content.pixels is not None
    assert content.pixels.shape == (48, 64, 3)
    assert content.orientation == 6  # to be turned clockwise by 90 degrees, as the matrix says
    video.close()
