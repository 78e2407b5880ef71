"""Keypoints of YOLO's pose labels as points."""

from pathlib import Path

import numpy as np
import pytest

from genenc_core import errors
from genenc_core.images.labels.point_table import PointTable
from genenc_core.images.labels.reading import read_points


def written(tmp_path: Path, lines: str, document: str = "", name: str = "labels/train/a.txt") -> Path:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(lines)
    if document:
        (tmp_path / "data.yaml").write_text(document)
    return tmp_path / "labels"


def by_name(table: PointTable, image: int = 0) -> dict[str, list[float]]:
    return dict(zip(table.names, np.round(table.xy[image], 3).tolist(), strict=True))


def test_one_object_in_an_image(tmp_path: Path) -> None:
    """Names of data.yaml; a point that is not labelled is missing; an image without objects; a hidden point counts."""
    folder = written(
        tmp_path,
        "0 0.5 0.5 0.4 0.4 0.4 0.4 2 0.6 0.6 1 0 0 0\n",
        "kpt_shape: [3, 3]\nkpt_names: {0: [nose, tail, ear]}\nnames: [mouse]\n",
    )
    written(tmp_path, "", name="labels/val/b.txt")
    table = read_points(folder)
    assert (table.images, table.by_stem, table.scale.text, table.individuals) == (("train/a",), True, "normalized", ())
    np.testing.assert_equal(by_name(table), {"nose": [0.4, 0.4], "tail": [0.6, 0.6], "ear": [np.nan, np.nan]})
    assert table.likelihood is None


def test_several_objects_are_individuals(tmp_path: Path) -> None:
    lines = "0 0.5 0.5 0.4 0.4 0.4 0.4\n1 0.2 0.2 0.1 0.1 0.2 0.2\n"
    table = read_points(written(tmp_path, lines, "kpt_shape: [1, 2]\nnames: {0: mouse, 1: rat}\n"))
    assert table.names == ("mouse 1.keypoint1", "rat 2.keypoint1")
    assert table.individuals == ("mouse 1", "rat 2")
    table = read_points(written(tmp_path, lines.replace("1 0.2", "0 0.2"), "kpt_shape: [1, 2]\n"))
    assert table.names == ("1.keypoint1", "2.keypoint1")


def test_predictions_have_likelihoods(tmp_path: Path) -> None:
    lines = "0 0.5 0.5 0.4 0.4 0.4 0.4 0.9 0.6 0.6 0.2 0.77\n"
    folder = written(tmp_path, lines, "kpt_shape: [2, 3]\n")
    found = read_points(folder)
    assert found.likelihood is not None
    assert found.likelihood.tolist() == [[0.9, 0.2]]
    sure = by_name(read_points(folder, min_likelihood=0.5))
    np.testing.assert_equal(sure, {"keypoint1": [0.4, 0.4], "keypoint2": [np.nan, np.nan]})


def test_visibilities_tell_keypoints_without_a_document(tmp_path: Path) -> None:
    lines = "0 0.5 0.5 0.4 0.4 0.4 0.4 2.0 0.6 0.6 1\n0 0.2 0.2 0.1 0.1 0.2 0.2 0 0.2 0.2 2.000\n"
    table = read_points(written(tmp_path, lines, name="labels/a.txt") / "a.txt")
    assert table.names == ("1.keypoint1", "1.keypoint2", "2.keypoint1", "2.keypoint2")


@pytest.mark.parametrize(
    ("lines", "document", "options", "words"),
    [
        ("0 0.5 0.5 0.4 0.4\n", "", {}, r"nothing says that keypoints follow a box: put the data.yaml .* --regions"),
        ("0 0.5 0.5 0.4 0.4 0.4 0.4\n", "", {}, "is a polygon, or a box with keypoints in it"),
        ("0 0.5 0.5 0.4 0.4 0.4\n", "kpt_shape: [1, 2]", {}, "6 words are neither"),
        ("0 0.5 0.5 0.4 0.4 40 30\n", "kpt_shape: [1, 2]", {}, "no fractions of an image's size"),
        ("0 0.5 0.5 0.4 0.4 x 30\n", "kpt_shape: [1, 2]", {}, "line 1.*'x'"),
        ("0 0.5 0.5 0.4 0.4 0.4 0.4\n", "kpt_shape: [1, 4]", {}, r"kpt_shape that is \[1, 4\]"),
        ("0 0.5 0.5 0.4 0.4 0.4 0.4\n", "kpt_shape: [1, 2]", {"scale": "2"}, "which are fractions: leave it out"),
        ("0 0.5 0.5 0.4 0.4 0.4 0.4\n", "kpt_shape: [1, 2]", {"columns": "x=a"}, "cannot be used with YOLO's files"),
    ],
)
def test_what_is_refused(tmp_path: Path, lines: str, document: str, options: dict[str, str], words: str) -> None:
    folder = written(tmp_path, lines, document)
    with pytest.raises(errors.InputError, match=words):
        read_points(folder / "train" / "a.txt", **options)


def test_other_files_beside_them(tmp_path: Path) -> None:
    written(tmp_path, "0 0.5 0.5 0.4 0.4 0.4 0.4\n", "kpt_shape: [1, 2]", name="labels/a.txt")
    (tmp_path / "labels" / "b.csv").write_text("image,point,x,y\na.png,a,1,2\n")
    with pytest.raises(errors.InputError, match=r"are YOLO's text files, .* and other files"):
        read_points(str(tmp_path / "labels" / "*"))
