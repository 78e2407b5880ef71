"""Files of tools that are not read are called by their name, with the way to convert them; none is taken for labels."""

import json
from pathlib import Path

import numpy as np
import pytest

from genenc_core import errors
from genenc_core.images.labels import reading

VIA = {"filename": "a.png", "regions": [{"shape_attributes": {"name": "point", "cx": 1, "cy": 2}}]}
TEXTS = {
    "via.json": ({"a.png1": VIA}, "seems to be a project of VIA .*cx and cy"),
    "via_project.json": ({"_via_settings": {}, "_via_img_metadata": {"a.png1": VIA}}, "seems to be a project of VIA"),
    "studio.json": ([{"id": 1, "data": {"img": "a.png"}, "annotations": []}], "Label Studio.*--points-scale percent"),
    "results.json": (
        [{"image_id": 1, "keypoints": [1, 2, 1], "score": 1}],
        "without their images and names.*AlphaPose",
    ),
    "openpose.json": ({"version": 1.3, "people": []}, "OpenPose"),
    "mmpose.json": ({"meta_info": {}, "instance_info": []}, "MMPose"),
    "supervisely.json": ({"description": "", "size": {}, "objects": []}, "Supervisely.*COCO Keypoints"),
    "labelbox.json": ([{"Labeled Data": "a.png", "Label": {}}], "Labelbox"),
    "sleap.json": ({"skeletons": [], "nodes": []}, "a SLEAP project in JSON.*save it as .slp"),
    "cvat.xml": ('<?xml version="1.0"?>\n<annotations><image name="a"/></annotations>', "CVAT.*COCO Keypoints 1.0"),
    "voc.xml": ("<annotation><object/></annotation>", "Pascal VOC, which holds boxes"),
    "trackmate.xml": ("<TrackMate version='7'/>", "TrackMate.*export spots to CSV"),
    "a.xml": ("<x/>", "is XML. Write a table"),
    "notes.txt": ("image,point,x,y\na,b,1,2\n", r"is not a table \(.csv, .tsv, .parquet\).*YOLO's .txt"),
    "anipose.csv": ("nose_x,nose_y,nose_z,nose_error,nose_score,fnum\n1,2,3,0,1,0\n", "positions in 3-D, as Anipose"),
    "mediapipe.csv": ("frame,x0,y0,z0,v0,x1,y1\n0,0.1,0.2,0,1,0.3,0.4\n", "MediaPipe.*--points-scale normalized"),
    "full.pickle": ("x", "Python pickle, which could run code.*DeepLabCut has the same points"),
    "dannce.mat": ("x", "MATLAB file .of DANNCE.*3-D"),
    "labels.nwb": ("x", r"is NWB.*sleap_io.load_nwb"),
    "movie.trk": ("x", "APT"),
    "export.zip": ("x", "ZIP archive.*Unpack it"),
    "points.npy": ("x", "NumPy array, without names"),
    "config.yaml": ("scorer: me", "a configuration, not labels.*the folder that it is in"),
    "labels.xls": ("x", "spreadsheet"),
}


@pytest.mark.parametrize("name", list(TEXTS))
def test_what_a_file_seems_to_be(tmp_path: Path, name: str) -> None:
    content, words = TEXTS[name]
    (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(errors.InputError, match=words) as said:
        reading.read_points(tmp_path / name)
    assert name in str(said.value)


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        (("poseest/points",), r"poses of JABS. sleap-io converts it: sleap_io.save_slp\(sleap_io.load_jabs"),
        (("annotations", "annotated", "images"), "annotations of DeepPoseKit"),
        (("positions_pred", "conf_pred"), "predictions of LEAP"),
    ],
)
def test_what_an_hdf5_file_seems_to_be(tmp_path: Path, entries: tuple[str, ...], words: str) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "labels.h5", "w") as file:
        for name in entries:
            file[name] = np.zeros(3)
    with pytest.raises(errors.InputError, match=words):
        reading.read_points(tmp_path / "labels.h5")


LIGHTNING = (
    "scorer,heatmap_tracker,heatmap_tracker,heatmap_tracker{}\nbodyparts,nose,nose,nose{}\ncoords,x,y,likelihood{}\n"
)


def test_predictions_of_lightning_pose_on_a_video(tmp_path: Path) -> None:
    path = tmp_path / "video_preds" / "clip.csv"
    path.parent.mkdir()
    path.write_text(LIGHTNING.format("", "", "") + "0,1,2,0.9\n1,3,4,0.8\n")
    table = reading.read_points(path)
    assert [name.rpartition("/")[2] for name in table.images] == ["clip#0", "clip#1"]
    assert table.xy[:, 0].tolist() == [[1, 2], [3, 4]]
    assert table.likelihood is not None
    assert table.likelihood[:, 0].tolist() == [0.9, 0.8]


def test_predictions_of_lightning_pose_on_labelled_frames(tmp_path: Path) -> None:
    path = tmp_path / "predictions.csv"
    path.write_text(LIGHTNING.format(",set", ",", ",") + "labeled-data/v/img1.png,1,2,0.9,train\n")
    table = reading.read_points(path)
    assert table.images == ("labeled-data/v/img1.png",)
    assert table.names == ("nose",)
