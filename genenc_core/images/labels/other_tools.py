"""Files of annotation tools that are not read: what a file seems to be, and how to convert it."""

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final

TABLE: Final = "Write a table of image, point, x, y from it"
_SLEAP_IO: Final = "sleap-io converts it: sleap_io.save_slp(sleap_io.{}(FILE), 'labels.slp')"
_BY_SUFFIX: Final[Mapping[str, str]] = {
    ".mat": f"is a MATLAB file (of DANNCE, APT or LEAP, perhaps). {TABLE} (in MATLAB: writetable); labels in 3-D are "
    "in no image: take those of one camera",
    ".xlsx": "is a spreadsheet. Save it as 'CSV UTF-8'",
    ".pkl": "is a Python pickle, which could run code. Write it as CSV: pandas.DataFrame.to_csv; DeepLabCut has the "
    "same points in the .h5 or .csv beside it (deeplabcut.convert_detections2tracklets and stitch_tracklets make one)",
    ".jsonl": f"holds JSON lines. {TABLE}",
    ".nwb": f"is NWB. {_SLEAP_IO.format('load_nwb')}",
    ".trk": f"is a file of tracks of APT. {TABLE} (in MATLAB: writetable)",
    ".zip": "is a ZIP archive, as CVAT and ImageJ export. Unpack it, and pass the labels in it",
    ".roi": f"is a region of ImageJ. {TABLE} (in ImageJ: Analyze, Measure, Save As .csv)",
    ".npz": f"is a NumPy archive. {TABLE}",
    ".npy": f"is a NumPy array, without names of images and points. {TABLE}",
    ".yaml": "is a configuration, not labels: of a DeepLabCut project give the folder that it is in",
}
_SAME: Final = {".xls": ".xlsx", ".ods": ".xlsx", ".pickle": ".pkl", ".ndjson": ".jsonl", ".yml": ".yaml"}
_OF_AXIS: Final = re.compile(r"(?:(.+)[_. -]z|z[_. -]?(.+))\Z", re.IGNORECASE)
_WITHOUT_MARK: Final = re.compile(r"[xy]\d+\Z", re.IGNORECASE)


def by_name(path: Path) -> str | None:
    """Return what follows the name of a file in a message, by its ending and, of texts, its first bytes; None if new.

    Raises:
        OSError: it cannot be read.
    """
    suffix = path.suffix.lower()
    if suffix == ".xml":
        return _xml(_beginning(path))
    return _BY_SUFFIX.get(_SAME.get(suffix, suffix))


def of_json(read: Any) -> str | None:
    """Return what JSON seems to be, and how to convert it; None if new."""
    if isinstance(read, dict):
        return _of_object(read)
    if isinstance(read, list) and read and isinstance(read[0], dict):
        keys = read[0].keys()
        if {"data", "annotations"} <= keys or {"data", "completions"} <= keys:
            return f"an export of Label Studio. {TABLE}, with x and y, which are percent: --points-scale percent"
        if {"image_id", "keypoints"} <= keys:
            return (
                "keypoints without their images and names, as COCO's results and AlphaPose have them. Put the list as "
                "`annotations` into a COCO file with its `images` and `categories`"
            )
        if "Labeled Data" in keys:
            return f"an export of Labelbox. {TABLE}"
    return None


def _of_object(read: Mapping[str, Any]) -> str | None:
    of_images = [each for each in list(read.values())[:5] if isinstance(each, dict)]
    if "_via_img_metadata" in read or any({"filename", "regions"} <= each.keys() for each in of_images):
        return f"a project of VIA (VGG Image Annotator). {TABLE}, with cx and cy of the shapes `point`"
    if "people" in read:
        return f"the people that OpenPose found in one image. {TABLE}, with the image that each file is named after"
    if "instance_info" in read:
        return f"predictions of MMPose. {TABLE}, with the frame_id of each instance"
    if {"objects", "size"} <= read.keys() or {"description", "objects"} <= read.keys():
        return f"annotations of Supervisely. {TABLE}, or export the project as COCO Keypoints"
    if "skeletons" in read and "nodes" in read:
        return "a SLEAP project in JSON. Open it in SLEAP, and save it as .slp"
    return None


def of_hdf5(entries: Collection[str]) -> str | None:
    """Return what an HDF5 file with these entries seems to be, and how to convert it; None if new."""
    if "poseest" in entries:
        return f"poses of JABS. {_SLEAP_IO.format('load_jabs')}"
    if {"annotations", "annotated"} <= {*entries}:
        return f"annotations of DeepPoseKit. {TABLE}"
    if {"positions_pred", "conf_pred"} <= {*entries}:
        return f"predictions of LEAP. {TABLE}"
    return None


def of_columns(names: Collection[str]) -> str | None:
    """Return what a table of such columns seems to be, and what to do; None if new."""
    deep = {(found[1] or found[2]).lower() for name in names if (found := _OF_AXIS.match(name))}
    error = any(name.lower().endswith("_error") for name in names)
    if deep and error:
        return (
            "positions in 3-D, as Anipose writes them, which are in no image: give the points of one camera, as the "
            "files of its 2-D step have them"
        )
    if sum(bool(_WITHOUT_MARK.match(name)) for name in names) > 3:
        return (
            "coordinates by number, as scripts with MediaPipe write them (x0, y0, ...): name the columns by point, "
            "x_0, y_0 or NOSE_x, NOSE_y, add one of images; MediaPipe's are fractions: --points-scale normalized"
        )
    return None


def _beginning(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(4096).decode(errors="replace")


def _xml(text: str) -> str:
    if "<annotations" in text:
        return "is XML of CVAT. Export the task as 'COCO Keypoints 1.0', and pass its .json"
    if "<TrackMate" in text:
        return f"is XML of TrackMate. {TABLE} (in TrackMate: export spots to CSV)"
    if "<annotation" in text:
        return "is XML of Pascal VOC, which holds boxes. Points are needed"
    return f"is XML. {TABLE}"
