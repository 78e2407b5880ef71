"""Videos: every frame is the one that plain decoding from the beginning gives, whatever the order of reading."""

import warnings
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import containers
from genenc_core.images.containers import frames, kinds
from genenc_core.images.containers.video import FramesNotShown, TruncatedVideo
from genenc_core.images.decode.decoded import ImageUnreadable

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
        found = [(frame.to_ndarray(format="rgb24"), float(frame.time or 0)) for frame in file.decode(video=0)]
    return [pixels for pixels, _ in found], [time for _, time in found]


CODECS = [
    ("libx264", "clip.mp4", {"bf": "3", "g": "12"}),
    ("libx264", "slices.mp4", {"bf": "2", "g": "12", "x264-params": "threads=1:slices=3"}),
    ("libx264", "clip.mts", {"bf": "3", "g": "12"}),
    ("mpeg2video", "clip.wmv", {"bf": "2", "g": "12"}),
    ("mpeg1video", "low.mpg", {"g": "12"}),
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
    if name in ("b-frames.avi", "clip.wmv"):  # which has no times
        times = [index / 30 for index in range(COUNT)]
    first = times[0]
    expected = [min(i for i, time in enumerate(times) if time - first >= step / 3 - 1.1e-3) for step in range(6)]
    assert per_second == expected
    video.close()


def test_a_matroska_that_begins_before_its_time_0(tmp_path: Path) -> None:
    """FFmpeg gives its first frames no times: they are counted, and the others keep theirs."""
    path = tmp_path / "clip.mkv"
    with av.open(str(path), "w", options={"avoid_negative_ts": "disabled"}) as file:
        stream = file.add_stream("libx264", rate=10, options={"bf": "2", "g": "6"})
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for at, pixels in enumerate(moving(24)):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = at - 5, Fraction(1, 10)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    wanted, _ = decoded(path)
    assert len(wanted) == 24
    video = kinds.open_container(str(path))
    members = list(video.members(frames.Frames()))
    assert [member.values for member in members[3:7]] == [("3", ""), ("4", ""), ("5", "0"), ("6", "0.1")]
    for index in (0, 4, 5, 3, 20, 4, 21, 6, 1, *range(24), 2, 23, 0):
        np.testing.assert_array_equal(video.read(members[index].at).pixels, wanted[index])
    with pytest.raises(ImageUnreadable, match="its first 5 frames are before its time 0"):
        list(video.members(frames.Frames.parse("5/s")))
    assert [member.name for member in video.members(frames.Frames.parse("4:7"))] == ["#4", "#5", "#6"]
    video.close()
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    video = kinds.open_container(str(path))
    with pytest.raises(ImageUnreadable, match="its frames have no times"):
        list(video.members(frames.Frames()))
    video.close()


@pytest.mark.parametrize("codec", ["ffv1", "msmpeg4", "libx264"])
def test_an_avi_without_an_index_is_decoded_from_the_beginning(codec: str, tmp_path: Path) -> None:
    """As a recording leaves it that was interrupted: what it calls key frames are none."""
    path = containers.write_video(tmp_path, moving(), codec=codec, name="clip.avi", g="12", bf="0")
    wanted, _ = decoded(path)
    data = bytearray(path.read_bytes())
    at = data.rindex(b"idx1")
    data[at : at + 4] = b"JUNK"
    path.write_bytes(data)
    video = kinds.open_container(str(path))
    members = list(video.members(frames.Frames()))
    for index in (8, 4, 40, 30, 59, 3):
        np.testing.assert_array_equal(video.read(members[index].at).pixels, wanted[index], err_msg=str(index))


X265 = {"x265-params": "keyint=12:min-keyint=12:bframes=0:open-gop=0:log-level=0:pools=1"}


@pytest.mark.parametrize(
    ("codec", "name", "options"),
    [
        ("libx264", "cut.mkv", {"bf": "0", "g": "12"}),
        ("libx264", "cut.mp4", {"bf": "0", "g": "12"}),
        ("libx264", "cut.mts", {"bf": "0", "g": "12"}),
        ("libx265", "cut.mkv", X265),  # its decoder finds the first packets damaged, where it is strict
        ("libx265", "cut.mp4", X265),
    ],
)
def test_frames_that_no_decoder_shows_are_not_counted(
    codec: str, name: str, options: dict[str, str], tmp_path: Path
) -> None:
    """A video that was cut between key frames, without encoding it again."""
    if codec not in av.codecs_available:
        pytest.skip(f"no {codec} in this FFmpeg")
    whole = containers.write_video(tmp_path, moving(), codec=codec, name="whole.mkv", **options)
    with av.open(str(whole)) as source, av.open(str(tmp_path / name), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(source.demux(video=0)):
            if packet.dts is not None and number >= 5:
                packet.stream = stream
                target.mux(packet)
    shown, _ = decoded(tmp_path / name)
    assert len(shown) == COUNT - 12
    video = kinds.open_container(str(tmp_path / name))
    with pytest.warns(FramesNotShown, match="7 frames"):
        members = list(video.members(frames.Frames()))
    assert [member.name for member in members] == [f"#{index}" for index in range(len(shown))]
    for index in (0, 20, 5, 47):
        np.testing.assert_array_equal(video.read(members[index].at).pixels, shown[index])


@pytest.mark.parametrize("name", ["open.mkv", "open.mp4"])
def test_frames_that_are_shown_before_their_key_frame(name: str, tmp_path: Path) -> None:
    """Of an open group of pictures the first ones need those of the group before, which a seek leaves out."""
    options = {"bf": "2", "g": "12", "x264-params": "open-gop=1:scenecut=0"}
    path = containers.write_video(tmp_path, moving(), codec="libx264", name=name, **options)
    wanted, _ = decoded(path)
    video = kinds.open_container(str(path))
    members = list(video.members(frames.Frames()))
    for index in np.random.default_rng(0).permutation(COUNT).tolist():
        np.testing.assert_array_equal(video.read(members[index].at).pixels, wanted[index], err_msg=str(index))


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


@pytest.mark.parametrize(
    ("matrix", "orientation"),
    [
        ((0, 1, -1, 0), 6),  # as a phone writes it: to be turned clockwise by 90 degrees
        ((0, -1, 1, 0), 8),
        ((-1, 0, 0, -1), 3),
        ((-1, 0, 0, 1), 2),
        ((1, 0, 0, -1), 4),
        ((0, 1, 1, 0), 5),
        ((0, -1, -1, 0), 7),
        ((1, 1, -1, 1), None),
    ],
)
def test_a_turned_video_is_upright(matrix: tuple[int, ...], orientation: int | None, tmp_path: Path) -> None:
    """The frames lie, and a matrix says how they are shown: x' = a x + c y, y' = b x + d y."""
    path = containers.write_video(tmp_path, moving(5), codec="mpeg4", name="clip.mp4")
    data = path.read_bytes()
    plain = b"".join(number.to_bytes(4, "big") for number in (65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30))
    assert data.count(plain) == 2  # of the movie and the track
    across, down, right, below = (number << 16 for number in matrix)
    numbers = (across, down, 0, right, below, 0, 0, 0, 1 << 30)
    turned = b"".join((number % (1 << 32)).to_bytes(4, "big") for number in numbers)
    at = data.rindex(plain)
    path.write_bytes(data[:at] + turned + data[at + len(plain) :])
    video = kinds.open_container(str(path))
    member = next(iter(video.members(frames.Frames())))
    if orientation is None:
        with pytest.raises(ImageUnreadable, match="another angle"):
            video.read(member.at)
        return
    content = video.read(member.at)
    assert content.pixels is not None
    assert content.pixels.shape == (48, 64, 3)
    assert content.orientation == orientation
    video.close()


def test_a_truncated_video_is_warned_of(tmp_path: Path) -> None:
    for name, codec in (("clip.mkv", "libx264"), ("clip.avi", "mjpeg")):
        path = containers.write_video(tmp_path, moving(240), codec=codec, name=name)
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2])
        with pytest.warns(TruncatedVideo, match=r"clip.* of the .* it seems to be truncated"):
            members = list(kinds.open_container(str(path)).members(frames.Frames()))
        assert 60 < len(members) < 200
    whole = containers.write_video(tmp_path, moving(30), codec="libx264", name="whole.mkv")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(list(kinds.open_container(str(whole)).members(frames.Frames()))) == 30


def test_alpha_is_composited_over_black(tmp_path: Path) -> None:
    path = tmp_path / "clip.mov"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("qtrle", rate=30)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "argb"
        file.mux(
            stream.encode(av.VideoFrame.from_ndarray(np.full((48, 64, 4), (100, 200, 200, 200), np.uint8), "argb"))
        )
        file.mux(stream.encode())
    video = kinds.open_container(str(path))
    pixels = video.read(next(iter(video.members(frames.Frames()))).at).pixels
    assert pixels is not None
    assert {*pixels.reshape(-1).tolist()} == {round(200 * 100 / 255)}


def test_damage_does_not_depend_on_what_was_read_before(tmp_path: Path) -> None:
    """A decoder would fill damaged parts from the frames that it decoded before."""
    noise = np.random.default_rng(0).integers(0, 20, (COUNT, 96, 128, 3), np.uint8)
    shown = [frame // 2 + more for frame, more in zip(moving(COUNT, 96, 128), noise, strict=True)]
    unreadable = 0
    for codec, name in (
        ("libx264", "clip.mp4"),
        ("mpeg4", "clip.avi"),
        ("mjpeg", "clip.mov"),
        ("libx264", "slices.mp4"),
    ):
        path = containers.write_video(tmp_path, shown, codec=codec, name=name)
        data = bytearray(path.read_bytes())
        for at in range(len(data) // 10, len(data) * 9 // 10, len(data) // 7):
            data[at] ^= 16
        path.write_bytes(data)
        video = kinds.open_container(str(path))
        members = list(video.members(frames.Frames()))
        forwards = [read(video, member.at) for member in members]
        backwards = [read(video, member.at) for member in members[::-1]][::-1]
        assert forwards == backwards, name
        unreadable += forwards.count(None)
    assert unreadable


def test_frames_made_from_a_corrupt_one_are_unreadable(tmp_path: Path) -> None:
    path = containers.write_video(tmp_path, moving(30), codec="mpeg4", name="clip.avi", g="10")
    video = kinds.open_container(str(path))
    members = list(video.members(frames.Frames()))

    class Corrupt:
        """A frame that the decoder marks."""

        def __init__(self, frame: Any, *, marked: bool) -> None:
            self.is_corrupt, self._frame = marked, frame

        def __getattr__(self, name: str) -> Any:
            return getattr(self._frame, name)

    video._seek(None, 0)
    video.read(members[11].at)
    video._decoding = (Corrupt(frame, marked=at == 1) for at, frame in enumerate(video._decoding))
    readable = [read(video, member.at) is not None for member in members[12:25]]
    assert readable == [True] + [False] * 7 + [True] * 5


def read(video: Any, at: str) -> bytes | None:
    """Return a frame's pixels, None if it is unreadable."""
    try:
        return bytes(video.read(at).values)
    except ImageUnreadable:
        return None


def test_other_files_are_not_followed(tmp_path: Path) -> None:
    containers.write_video(tmp_path, moving(5), name="other.mkv")
    for text in (
        "ffconcat version 1.0\nfile other.mkv\n",
        f"ffconcat version 1.0\nfile '{tmp_path}/other.mkv'\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nother.mkv\n#EXT-X-ENDLIST\n",
    ):
        (tmp_path / "clip.mp4").write_text(text)
        with pytest.raises(ImageUnreadable, match="damaged or unsupported video"):
            kinds.open_container(str(tmp_path / "clip.mp4"))
