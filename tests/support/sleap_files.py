"""SLEAP's files, written as sleap-io 0.9 writes them, but by h5py alone."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

NODES = ("nose", "ear")
USER, PREDICTED = 0, 1
INSTANCE = np.dtype(
    [
        *(("instance_id", "<i8"), ("instance_type", "u1"), ("frame_id", "<u8"), ("skeleton", "<u4")),
        *(("track", "<i4"), ("from_predicted", "<i8"), ("score", "<f4"), ("point_id_start", "<u8")),
        *(("point_id_end", "<u8"), ("tracking_score", "<f4")),
    ]
)
FRAME = np.dtype([(name, "<u8") for name in ("frame_id", "video", "frame_idx", "instance_id_start", "instance_id_end")])
POINT = np.dtype([("x", "<f8"), ("y", "<f8"), ("visible", "?"), ("complete", "?")])
SCORED = np.dtype([*((name, POINT[name]) for name in POINT.names or ()), ("score", "<f8")])


class Instance(NamedTuple):
    """An animal in a frame: `(x, y)` of each node as SLEAP counts, or None."""

    points: Sequence[tuple[float, float] | None]
    track: int = -1
    scores: Sequence[float] | None = None
    """Those of a prediction; None: a user placed it."""
    corrects: int = -1
    """The id of the prediction that a user corrected."""


def video(name: str) -> dict[str, Any]:
    """Return what a project says of a video."""
    return {"filename": name, "backend": {"type": "MediaVideo", "filename": name}}


def write_slp(
    path: Path,
    frames: Mapping[tuple[int, int], Sequence[Instance]],
    *,
    videos: Sequence[Mapping[str, Any]] = (video("clip.mp4"),),
    tracks: Sequence[str] = (),
    form: float = 1.4,
    nodes: Sequence[str] = NODES,
) -> Path:
    """Write a project of instances by (video, frame)."""
    import h5py

    rows: list[tuple[int, ...]] = []
    instances: list[tuple[Any, ...]] = []
    user: list[tuple[Any, ...]] = []
    predicted: list[tuple[Any, ...]] = []
    for number, ((of, index), shown) in enumerate(frames.items()):
        rows.append((number, of, index, len(instances), len(instances) + len(shown)))
        for each in shown:
            points = predicted if each.scores is not None else user
            first = len(points)
            for at, point in enumerate(each.points):
                own = (*(point or (np.nan, np.nan)), point is not None, False)
                points.append(own if each.scores is None else (*own, each.scores[at]))
            kind = USER if each.scores is None else PREDICTED
            instances.append(
                (len(instances), kind, number, 0, each.track, each.corrects, 0.5, first, len(points), np.nan)
            )
    stated = {
        "version": "2.0.0",
        "skeletons": [{"nodes": [{"id": at} for at in reversed(range(len(nodes)))], "links": []}],
        "nodes": [{"name": name, "weight": 1.0} for name in nodes[::-1]],
    }
    with h5py.File(path, "w") as file:
        group = file.create_group("metadata")
        group.attrs["format_id"], group.attrs["json"] = form, np.bytes_(json.dumps(stated))
        for name, values in (("videos_json", videos), ("tracks_json", [[0, name] for name in tracks])):
            file.create_dataset(name, data=[json.dumps(each) for each in values], dtype=h5py.string_dtype())
        file["frames"] = np.array(rows, FRAME)
        file["instances"] = np.array(instances, INSTANCE)
        file["points"], file["pred_points"] = np.array(user, POINT), np.array(predicted, SCORED)
    return path


def embed(
    path: Path, images: Mapping[int, bytes], *, origin: str = "clip.mp4", padded: bool = True, **attrs: Any
) -> Path:
    """Put encoded images of the first video, by frame, into a project, whose video is inside it then."""
    import h5py

    stated = {
        "filename": ".",
        "backend": {"type": "HDF5Video", "filename": ".", "dataset": "video0/video", "has_embedded_images": True},
        "source_video": video(origin),
    }
    longest = max(map(len, images.values()))
    with h5py.File(path, "r+") as file:
        data = file.create_dataset(
            "video0/video",
            (len(images), longest) if padded else (len(images),),
            "i1" if padded else h5py.vlen_dtype(np.int8),
        )
        for at, each in enumerate(images.values()):
            data[at] = np.frombuffer(each.ljust(longest, b"\0") if padded else each, np.int8)
        data.attrs.update({"format": "png", "channel_order": "RGB", **attrs})
        file["video0/frame_numbers"] = np.array(list(images))
        texts = file["videos_json"][()]
        del file["videos_json"]
        texts[0] = json.dumps(stated)
        file.create_dataset("videos_json", data=texts, dtype=h5py.string_dtype())
    return path


def write_analysis(
    path: Path,
    tracks: np.ndarray,
    *,
    scores: np.ndarray | None = None,
    names: Sequence[str] = (),
    video_path: str | None = "clip.mp4",
    nodes: Sequence[str] = NODES,
    axes: Sequence[str] | None = None,
) -> Path:
    """Write an analysis file of positions `[track, xy, node, frame]`, or with the named axes."""
    import h5py

    with h5py.File(path, "w") as file:
        file["tracks"] = tracks
        file["node_names"] = np.array([name.encode() for name in nodes])
        file.create_dataset("track_names", data=np.array([name.encode() for name in names], "S20"))
        if scores is not None:
            file["point_scores"] = scores
        if video_path is not None:
            file["video_path"] = video_path
        if axes is not None:
            file["tracks"].attrs["dims"] = json.dumps(list(axes))
    return path
