"""SLEAP's projects and analysis files say the same, a user's labels win, and damage is refused."""

from pathlib import Path

import numpy as np
import pytest

import sleap_files
from genenc_core import errors
from genenc_core.images.labels import point_table, reading
from sleap_files import Instance

pytest.importorskip("h5py")
NAN = float("nan")
TRACKS = ("m2", "m1")
FRAMES = {
    (0, 7): [
        Instance([(1, 2), (3, 4)], 0, (0.9, 0.4)),
        Instance([(11, 12), None], 1, (1.07, NAN)),
    ],
    (0, 3): [
        Instance([(5, 6), (7, 8)], 1, (0.9, 0.3)),
        Instance([(30, 31), (32, 33)], 1),
    ],
}


def test_tracks_nodes_frames_and_scores(tmp_path: Path) -> None:
    table = reading.read_points(sleap_files.write_slp(tmp_path / "a.slp", FRAMES, tracks=TRACKS))
    assert table.names == ("m2.nose", "m2.ear", "m1.nose", "m1.ear")
    assert table.individuals == ("m2", "m2", "m1", "m1")
    assert table.images == ("clip.mp4#7", "clip.mp4#3")
    # Half a pixel more: SLEAP counts from the centre of the first pixel.
    expected = [
        [[1.5, 2.5], [3.5, 4.5], [11.5, 12.5], [NAN, NAN]],
        [[NAN, NAN], [NAN, NAN], [30.5, 31.5], [32.5, 33.5]],
    ]
    np.testing.assert_array_equal(table.xy, expected)
    np.testing.assert_array_equal(table.likelihood, [[0.9, 0.4, 1, NAN], [NAN, NAN, 1, 1]])
    frames = {(0, 1): [Instance([(1, 2), None], 0), Instance([(3, 4), (5, 6)], 1, (0.5, 0.6))]}
    placed = reading.read_points(sleap_files.write_slp(tmp_path / "b.slp", frames, tracks=TRACKS))
    np.testing.assert_array_equal(placed.likelihood, [[1, NAN, 0.5, 0.6]])
    least = reading.read_points(tmp_path / "a.slp", min_likelihood=0.6)
    assert sum(least.uncertain.values()) == 1
    assert np.isnan(least.xy[0, 1]).all()


def test_files_before_format_1_1_count_from_the_edge(tmp_path: Path) -> None:
    table = reading.read_points(sleap_files.write_slp(tmp_path / "a.slp", FRAMES, tracks=TRACKS, form=1.0))
    assert table.xy[0, 0].tolist() == [1, 2]


def test_labels_of_a_user_alone_have_no_likelihood_and_pass_any(tmp_path: Path) -> None:
    path = sleap_files.write_slp(tmp_path / "a.slp", {(0, 2): [Instance([(1, 2), None])]})
    assert reading.read_points(path).likelihood is None
    assert reading.read_points(path).individuals == ()
    assert reading.read_points(path, min_likelihood=0.9).xy[0, 0].tolist() == [1.5, 2.5]


def test_instances_without_a_track_are_numbered_where_there_are_several(tmp_path: Path) -> None:
    frames = {
        (0, 0): [Instance([(1, 1), (2, 2)])],
        (0, 1): [
            Instance([(9, 9), (9, 9)], scores=(0.5, 0.5)),
            Instance([(3, 3), (4, 4)], corrects=1),
            Instance([(5, 5), None], scores=(0.8, 0.8)),
        ],
    }
    table = reading.read_points(sleap_files.write_slp(tmp_path / "a.slp", frames))
    assert table.names == ("1.nose", "1.ear", "2.nose", "2.ear")
    np.testing.assert_array_equal(table.xy[:, 0], [[1.5, 1.5], [3.5, 3.5]])
    np.testing.assert_array_equal(table.xy[1, 2], [5.5, 5.5])  # the corrected prediction (9, 9) is gone


@pytest.mark.parametrize("order", [("track", "xy", "node", "frame"), ("frame", "track", "node", "xy"), None])
def test_an_analysis_file_says_what_its_project_says(tmp_path: Path, order: tuple[str, ...] | None) -> None:
    own = reading.read_points(sleap_files.write_slp(tmp_path / "a.slp", FRAMES, tracks=TRACKS))
    xy, scores = np.full((2, 2, 2, 9), NAN), np.full((2, 2, 9), NAN)
    for (_, frame), instances in FRAMES.items():
        for each in instances:
            for node, point in enumerate(each.points):
                xy[each.track, :, node, frame] = point or (NAN, NAN)
                scores[each.track, node, frame] = NAN if each.scores is None else each.scores[node]
    usual = ("track", "xy", "node", "frame")
    tracks = xy if order is None else np.transpose(xy, [usual.index(axis) for axis in order])
    path = sleap_files.write_analysis(tmp_path / "a.analysis.h5", tracks, scores=scores, names=TRACKS, axes=order)
    table = reading.read_points(path)
    assert (table.names, table.individuals) == (own.names, own.individuals)
    assert table.images == own.images[::-1]
    np.testing.assert_array_equal(table.xy[::-1], own.xy)
    seen = np.isfinite(own.xy[..., 0])
    np.testing.assert_array_equal(table.likelihood[::-1][seen], own.likelihood[seen])  # type: ignore[index]


def test_an_analysis_file_of_one_animal_without_tracks_or_video(tmp_path: Path) -> None:
    xy = np.arange(8, dtype=np.float64).reshape(1, 2, 2, 2)
    path = sleap_files.write_analysis(tmp_path / "labels.v001.000_clip.analysis.h5", xy, video_path=None)
    table = reading.read_points(path)
    assert (table.names, table.images, table.likelihood) == (("nose", "ear"), ("clip#0", "clip#1"), None)
    path = path.rename(tmp_path / "other.h5")
    with pytest.raises(errors.InputError, match=r"does not say of which video.*PROJECT.000_VIDEO.analysis.h5"):
        reading.read_points(path)


def test_the_images_of_a_sequence_and_of_a_moved_video(tmp_path: Path) -> None:
    videos = [
        {"backend": {"type": "ImageVideo", "filename": ["C:\\d\\a.png", "C:\\d\\b.png"]}},
        sleap_files.video("C:\\old\\x\\clip.mp4"),
    ]
    frames = {(0, 1): [Instance([(1, 2), None])], (1, 4): [Instance([(1, 2), None])]}
    path = sleap_files.write_slp(tmp_path / "a.slp", frames, videos=videos)
    table = reading.read_points(path)
    assert table.images == ("C:/d/b.png", "C:/old/x/clip.mp4#4")
    assert table.hinted == {0, 1}
    path = sleap_files.write_slp(path, {(0, 9): frames[0, 1]}, videos=videos)
    with pytest.raises(errors.InputError, match="frame 9 of its video 0 has labels, and the project does not say"):
        reading.read_points(path)


def test_frames_inside_a_package(tmp_path: Path) -> None:
    path = sleap_files.write_slp(tmp_path / "a.pkg.slp", FRAMES, tracks=TRACKS)
    sleap_files.embed(path, {7: b"x", 3: b"y"})
    assert reading.read_points(path).images == ("a.pkg.slp/video0/clip.mp4#7", "a.pkg.slp/video0/clip.mp4#3")


def test_damaged_and_other_files_are_refused(tmp_path: Path) -> None:
    path = sleap_files.write_slp(tmp_path / "a.slp", FRAMES, tracks=TRACKS)
    whole = path.read_bytes()
    for cut in (0, 10, 100, len(whole) // 2, len(whole) - 500):
        path.write_bytes(whole[:cut])
        with pytest.raises(errors.InputError, match=r"is not readable as a SLEAP project .*: save or export it again"):
            reading.read_points(path)
    sleap_files.write_slp(path, FRAMES, tracks=TRACKS[:1])
    with pytest.raises(errors.InputError, match=r"is not readable as a SLEAP project .*index out of range"):
        reading.read_points(path)
    sleap_files.write_slp(path, FRAMES, tracks=TRACKS, form=3.0)
    with pytest.raises(errors.InputError, match=r"of format 3, newer than .* export an analysis file"):
        reading.read_points(path)
    sleap_files.write_slp(path, {(0, 1): [Instance([(1, 2)])]})
    with pytest.raises(errors.InputError, match="an instance has 1 points, its skeleton 2 nodes"):
        reading.read_points(path)
    sleap_files.write_slp(path, {(0, 1): [Instance([(1, 2), None], 0), Instance([(3, 4), None], 0)]}, tracks=["m"])
    with pytest.raises(errors.InputError, match="frame 1 of video 0 has two instances of 'm': correct their tracks"):
        reading.read_points(path)
    sleap_files.write_slp(path, {})
    with pytest.raises(errors.InputError, match="contains no points"):
        reading.read_points(path)
    with pytest.raises(errors.InputError, match=r"cannot be used with .*a SLEAP project"):
        reading.read_points(path, columns="point=node")
    sleap_files.write_analysis(tmp_path / "b.h5", np.zeros((1, 2, 3, 4)))
    with pytest.raises(
        errors.InputError, match=r"not readable as an analysis file of SLEAP .*\(1, 2, 3, 4\) for 2 nodes"
    ):
        reading.read_points(tmp_path / "b.h5")


def test_likelihoods_that_are_not_used_are_said(tmp_path: Path) -> None:
    path = sleap_files.write_slp(tmp_path / "a.slp", FRAMES, tracks=TRACKS)
    with pytest.warns(point_table.LabelsNotUsed, match="a.slp: the likelihood of each label is stored"):
        reading.read_points(path)


def test_files_that_sleap_io_wrote(tmp_path: Path) -> None:
    sio = pytest.importorskip("sleap_io")
    skeleton = sio.Skeleton(list(sleap_files.NODES))
    tracks = [sio.Track(name) for name in TRACKS]
    video = sio.Video("clip.mp4", open_backend=False)
    frames = []
    for (_, frame), instances in FRAMES.items():
        made = []
        for each in instances:
            points = np.array([point or (NAN, NAN) for point in each.points], np.float64)
            given = {"skeleton": skeleton, "track": tracks[each.track]}
            if each.scores is None:
                made.append(sio.Instance.from_numpy(points, **given))
            else:
                made.append(
                    sio.PredictedInstance.from_numpy(points, point_scores=np.array(each.scores), score=0.5, **given)
                )
        frames.append(sio.LabeledFrame(video=video, frame_idx=frame, instances=made))
    sio.Labels(frames, tracks=tracks).save(str(tmp_path / "theirs.slp"), verbose=False)
    theirs = reading.read_points(tmp_path / "theirs.slp")
    own = reading.read_points(sleap_files.write_slp(tmp_path / "own.slp", FRAMES, tracks=TRACKS))
    assert (theirs.names, theirs.images) == (own.names, own.images)
    np.testing.assert_array_equal(theirs.xy, own.xy)
    np.testing.assert_array_equal(theirs.likelihood, own.likelihood)
