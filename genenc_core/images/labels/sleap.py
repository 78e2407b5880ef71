"""Labels of SLEAP: projects and predictions (`.slp`), and its analysis files (`.h5`).

SLEAP counts from the centre of the first pixel, and genenc from its edge: half a pixel is added. Tracks are
individuals; instances without a track are numbered within their frame where there are several. A corrected prediction
gives way to the user's instance, as SLEAP shows it. The likelihood of a predicted point is its score, which as the peak
of a map may be a little above 1 and counts as 1 then; a point that a user placed has 1.
"""

import contextlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from genenc_core import errors
from genenc_core.images.containers import slp_videos
from genenc_core.images.labels.point_table import Label, Unused

LARGEST_TABLE: Final = 2**28
"""Numbers in an analysis file."""
_HALF: Final = 0.5
_USER, _PREDICTED = 0, 1
_AXES: Final = ("track", "xy", "node", "frame")
"""Order of `tracks` as SLEAP exports it."""
_NAMED_FOR: Final = re.compile(r".*\.\d{3}_(?P<video>.+)\.analysis\.h5\Z")
"""How SLEAP names analysis files: PROJECT.000_VIDEO.analysis.h5."""


class _Instance(NamedTuple):
    """An animal in one frame."""

    individual: str
    nodes: Sequence[str]
    points: np.ndarray
    """float64 `[nodes, (x, y, likelihood)]`."""


class _Frame(NamedTuple):
    image: str
    row: str
    instances: list[_Instance]


def slp_labels(path: Path, *, unused: Unused) -> Iterator[Label]:
    """Yield the labels of a `.slp`.

    Raises:
        InputError: h5py is not installed, the file is damaged, of a newer format, or does not say what its images are.
    """
    with _opened(path, "a SLEAP project") as file:
        project = _Project(path, file, predicted_counts=unused.likelihoods_count)
        if project.has_predictions:
            unused.add_likelihood(path.name, "the likelihood of each label")
        yield from _labels(path, project.frames(), project.names())


def analysis_labels(path: Path, *, unused: Unused) -> Iterator[Label]:
    """Yield the labels of an analysis file; raises as `slp_labels`."""
    with _opened(path, "an analysis file of SLEAP") as file:
        video = _analysed_video(path, file)
        nodes, tracks = _texts(file["node_names"]), _texts(file["track_names"]) if "track_names" in file else []
        xy = _by_frame(file, "tracks", _analysis_axes(file, len(nodes)))
        if xy.shape[2:] != (len(nodes), 2) or (tracks and xy.shape[1] != len(tracks)):
            raise ValueError(f"{len(tracks)} tracks of {len(nodes)} nodes have positions of the shape {xy.shape}")
        scores = _scores(file, xy)
        if np.isfinite(scores).any():
            unused.add_likelihood(path.name, "the likelihood of each label")
            scores = np.where(np.isfinite(scores) | ~np.isfinite(xy).all(axis=-1), scores, 1.0)
        elif unused.likelihoods_count and scores.size and _has_scores(file):
            scores = np.ones_like(scores)
        points = np.concatenate([xy + _HALF, np.clip(scores, 0, 1)[..., None]], axis=-1)
        seen = np.isfinite(xy).all(axis=-1).any(axis=-1)
        used = [at for at in range(xy.shape[1]) if seen[:, at].any()]
        names = {at: _individual(tracks, at, several=len(used) > 1) for at in used}
        every = [(names[at], node) for at in used for node in nodes]
        frames = (
            _Frame(
                f"{video}#{frame}",
                f"frame {frame}",
                [_Instance(names[at], nodes, points[frame, at]) for at in used if seen[frame, at]],
            )
            for frame in np.flatnonzero(seen.any(axis=1)).tolist()
        )
        yield from _labels(path, frames, every)


def is_analysis(names: Sequence[str]) -> bool:
    """Return whether an HDF5 file with these entries is an analysis file."""
    return {"tracks", "node_names"} <= {*names}


@contextlib.contextmanager
def _opened(path: Path, what: str) -> Iterator[Any]:
    """Open an HDF5 file, and raise `InputError` for whatever damage makes of it."""
    try:
        import h5py
    except ImportError as error:
        raise errors.InputError(
            f"the points file {str(path)!r} is {what}, which is HDF5, and h5py is not installed: pip install "
            "'genenc[hdf5]'"
        ) from error
    try:
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except (errors.InputError, MemoryError):
        raise
    except Exception as error:  # h5py, JSON and wrong indices may raise anything
        reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
        raise errors.InputError(
            f"the points file {str(path)!r} is not readable as {what} ({' '.join(reason.split())[:200]}): save or "
            "export it again, in SLEAP or with sleap-io"
        ) from error


class _Project:
    """An open `.slp`."""

    def __init__(self, path: Path, file: Any, *, predicted_counts: bool) -> None:
        self._path = path
        form = slp_videos.format_of(file)
        if form >= slp_videos.TOO_NEW:
            raise errors.InputError(
                f"the points file {str(path)!r} is a SLEAP project of format {form:g}, newer than this version of "
                "genenc reads: export an analysis file (.h5) from it"
            )
        stated = slp_videos.metadata(file)
        every = [str(node["name"]) for node in stated["nodes"]]
        self._skeletons = [[every[int(node["id"])] for node in each["nodes"]] for each in stated["skeletons"]]
        self._tracks = [_track_name(json.loads(text)) for text in file["tracks_json"][()]]
        self._videos = slp_videos.videos(file)
        self._frames = file["frames"][()]
        self._instances = file["instances"][()]
        user, predicted = file["points"][()], file["pred_points"][()]
        self.has_predictions = bool((self._instances["instance_type"] == _PREDICTED).any())
        known = self.has_predictions or predicted_counts
        shift = _HALF if form >= slp_videos.CENTRED else 0.0
        self._points = {
            _USER: _positions(user, np.where(np.isfinite(_field(user, "x")) & known, 1.0, np.nan), shift),
            _PREDICTED: _positions(predicted, np.clip(_field(predicted, "score"), 0, 1), shift),
        }
        self._shown = [self._shown_in(frame) for frame in self._frames]

    def names(self) -> list[tuple[str, str]]:
        """Return all individuals and nodes that are used: by track, then the numbered ones."""
        nodes: dict[str, dict[str, None]] = {}
        for instance in (instance for shown in self._named() for instance in shown):
            nodes.setdefault(instance.individual, {}).update(dict.fromkeys(instance.nodes))
        order = {name: at for at, name in enumerate(self._tracks)}
        found = sorted(nodes, key=lambda name: (order.get(name, len(order)), int(name) if name.isdecimal() else 0))
        return [(individual, node) for individual in found for node in nodes[individual]]

    def frames(self) -> Iterator[_Frame]:
        """Yield the frames that have instances."""
        for frame, instances in zip(self._frames, self._named(), strict=True):
            if instances:
                video, index = int(frame["video"]), int(frame["frame_idx"])
                name = self._videos[video].frame_name(index, str(self._path.name))
                if name is None:
                    raise errors.InputError(
                        f"{self._path}: frame {index} of its video {video} has labels, and the project does not say "
                        "which file it is: open it in SLEAP, choose the missing video, and save it"
                    )
                yield _Frame(name, f"frame {index} of video {video}", instances)

    def _shown_in(self, frame: Any) -> list[int]:
        """Return the instances of a frame but for the predictions that a user corrected."""
        own = range(int(frame["instance_id_start"]), int(frame["instance_id_end"]))
        found = [self._instances[at] for at in own]
        user = [each for each in found if int(each["instance_type"]) == _USER]
        tracks = {int(each["track"]) for each in user if int(each["track"]) >= 0}
        corrected = {int(each["from_predicted"]) for each in user if int(each["from_predicted"]) >= 0}
        return [
            at
            for at, each in sorted(zip(own, found, strict=True), key=lambda item: int(item[1]["instance_type"]))
            if int(each["instance_type"]) == _USER
            or (int(each["track"]) not in tracks and int(each["instance_id"]) not in corrected)
        ]

    def _named(self) -> Iterator[list[_Instance]]:
        """Yield the instances of each frame."""
        untracked = [[at for at in shown if int(self._instances[at]["track"]) < 0] for shown in self._shown]
        several = max(map(len, untracked), default=0) > 1
        for shown in self._shown:
            number, made = 0, []
            for at in shown:
                instance = self._instances[at]
                track = int(instance["track"])
                number += track < 0
                individual = self._tracks[track] if track >= 0 else str(number) if several else ""
                made.append(self._instance(instance, individual))
            yield made

    def _instance(self, instance: Any, individual: str) -> _Instance:
        nodes = self._skeletons[int(instance["skeleton"])]
        first, last = int(instance["point_id_start"]), int(instance["point_id_end"])
        points = self._points[int(instance["instance_type"])][first:last]
        if len(points) != len(nodes):
            raise ValueError(f"an instance has {len(points)} points, its skeleton {len(nodes)} nodes")
        return _Instance(individual, nodes, points)


def _positions(points: np.ndarray, likelihood: np.ndarray, shift: float) -> np.ndarray:
    """Return float64 `[n, (x, y, likelihood)]`; points that are not visible are missing."""
    xy = np.stack([_field(points, "x"), _field(points, "y")], axis=-1) + shift
    xy[~(_field(points, "visible") != 0) | ~np.isfinite(xy).all(axis=-1)] = np.nan
    return np.concatenate([xy, likelihood[:, None]], axis=-1)


def _field(points: np.ndarray, name: str) -> np.ndarray:
    return np.asarray(points[name], dtype=np.float64)


def _track_name(track: Any) -> str:
    return str(track["name"] if isinstance(track, dict) else track[1])


def _labels(path: Path, frames: Iterator[_Frame], every: Sequence[tuple[str, str]]) -> Iterator[Label]:
    """Yield the points of frames; the first has all names, so that their order is that of tracks and nodes."""
    wanted: Sequence[tuple[str, str]] = every
    for frame in frames:
        points: dict[tuple[str, str], np.ndarray] = {}
        for instance in frame.instances:
            for node, point in zip(instance.nodes, instance.points, strict=True):
                if (instance.individual, node) in points:
                    raise errors.InputError(
                        f"{path}: {frame.row} has two instances of {instance.individual or 'one animal'!r}: correct "
                        "their tracks in SLEAP"
                    )
                points[instance.individual, node] = point
        for individual, name in wanted or points:
            x, y, likelihood = map(float, points.get((individual, name), (math.nan,) * 3))
            yield Label(
                file=str(path),
                row=frame.row,
                image=frame.image,
                name=name,
                x=x,
                y=y,
                individual=individual,
                likelihood=likelihood,
                folders_are_hints=True,
            )
        wanted = ()


def _analysed_video(path: Path, file: Any) -> str:
    """Return the name of the video that an analysis file is of."""
    stored = file["video_path"][()] if "video_path" in file else b""
    name = stored.decode() if isinstance(stored, bytes) else str(stored)
    found = _NAMED_FOR.match(path.name)
    if name or found:
        return name.replace("\\", "/") or str(found and found["video"])
    raise errors.InputError(
        f"{path} does not say of which video it is: name it PROJECT.000_VIDEO.analysis.h5, as SLEAP does, where VIDEO "
        "is the video's name without its ending"
    )


def _individual(tracks: Sequence[str], at: int, *, several: bool) -> str:
    return tracks[at] if tracks else str(at + 1) if several else ""


def _analysis_axes(file: Any, nodes: int) -> Sequence[str]:
    """Return the names of the axes of `tracks`."""
    stored, shape = file["tracks"].attrs.get("dims"), file["tracks"].shape
    if stored is not None:
        return tuple(json.loads(stored))
    if len(shape) == 4 and shape[1:3] == (2, nodes):
        return _AXES
    if len(shape) == 4 and shape[2:] == (nodes, 2):
        return ("frame", "track", "node", "xy")
    raise ValueError(f"positions of the shape {shape} for {nodes} nodes")


def _by_frame(file: Any, name: str, axes: Sequence[str]) -> np.ndarray:
    """Return an array with its axes in the order frame, track, node, xy; float64."""
    if math.prod(file[name].shape) > LARGEST_TABLE:
        raise ValueError(f"{name} has more than {LARGEST_TABLE:,} numbers")
    order = [axes.index(axis) for axis in ("frame", "track", "node", "xy") if axis in axes]
    return np.transpose(np.asarray(file[name][()], np.float64), order)


def _has_scores(file: Any) -> bool:
    return "point_scores" in file or "instance_scores" in file


def _scores(file: Any, xy: np.ndarray) -> np.ndarray:
    """Return the score of each point, `[frame, track, node]`: its own, else that of its instance; NaN without any."""
    scores = np.full(xy.shape[:3], np.nan)
    tracks: Mapping[str, Any] = file["tracks"].attrs
    frames_first = "dims" not in tracks and xy.shape[:2] == file["tracks"].shape[:2]
    for name, usual in (("point_scores", ("track", "node", "frame")), ("instance_scores", ("track", "frame"))):
        if name in file:
            stored = file[name].attrs.get("dims")
            ordered = sorted(usual, key=("frame", "track", "node").index) if frames_first else usual
            found = _by_frame(file, name, tuple(json.loads(stored)) if stored is not None else ordered)
            found = found if found.ndim == 3 else found[..., None]
            scores = np.where(np.isfinite(scores), scores, np.broadcast_to(found, scores.shape))
    return scores


def _texts(dataset: Any) -> list[str]:
    return [each.decode() if isinstance(each, bytes) else str(each) for each in dataset[()].tolist()]
