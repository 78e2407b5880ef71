"""The videos of a SLEAP file (`.slp`): where their frames are, and what they are called."""

import json
import posixpath
from collections.abc import Mapping
from typing import Any, NamedTuple

SUFFIX = ".slp"
CENTRED = 1.1
"""Format from which on (0, 0) is the centre of the first pixel; before, its top left edge."""
RGB_INSIDE = 1.4
"""Format from which on embedded images have their colours in the usual order."""
TOO_NEW = 3.0


class SlpVideo(NamedTuple):
    """One video of a project."""

    files: tuple[str, ...]
    """Its file, with `/` between folders; of a sequence of images one for each frame; () if unknown."""
    is_sequence: bool
    group: str = ""
    """Of frames inside the `.slp`: the group that holds them; "" if they are in files of their own."""

    def frame_name(self, frame: int, package: str) -> str | None:
        """Return the name of a frame's image, `folder/clip.mp4#17`; None if the project does not say it.

        Frames inside a package are named `PACKAGE/video0/clip.mp4#17`, by the file that they were taken from.
        """
        if self.group:
            origin = posixpath.basename(self.files[0]) if self.files and not self.is_sequence else ""
            return "/".join(filter(None, (package, self.group, origin))) + f"#{frame}"
        if self.is_sequence:
            return self.files[frame] if 0 <= frame < len(self.files) else None
        return f"{self.files[0]}#{frame}" if self.files else None


def format_of(file: Any) -> float:
    """Return the format of an open `.slp`; raises `KeyError` or `ValueError` where it has none."""
    return float(file["metadata"].attrs["format_id"])


def metadata(file: Any) -> dict[str, Any]:
    """Return the metadata of an open `.slp`; raises as `format_of`, and `TypeError`."""
    return dict(json.loads(file["metadata"].attrs["json"]))


def videos(file: Any) -> list[SlpVideo]:
    """Return the videos of an open `.slp`, in its order; raises `KeyError`, `TypeError` or `ValueError`."""
    return [_video(file, json.loads(text)) for text in file["videos_json"][()]] if "videos_json" in file else []


def _video(file: Any, stated: Mapping[str, Any]) -> SlpVideo:
    backend: Mapping[str, Any] = stated.get("backend") or {}
    group, _, name = str(backend.get("dataset") or "").strip("/").rpartition("/")
    if group and name == "video" and (backend.get("filename") or stated.get("filename")) in (".", "", None):
        return SlpVideo(*_files(_origin(file, group, stated)), group)
    if group and name == "video" and backend.get("has_embedded_images"):
        return SlpVideo(*_files(_origin(file, group, stated)), group)
    return SlpVideo(*_files(stated))


def _origin(file: Any, group: str, stated: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what a project says of the video that embedded frames were taken from."""
    if isinstance(stated.get("source_video"), dict):
        return dict(stated["source_video"])
    inside = file.get(f"{group}/source_video")
    found = json.loads(inside.attrs["json"]) if inside is not None and "json" in inside.attrs else {}
    return found if isinstance(found, dict) else {}


def _files(stated: Mapping[str, Any]) -> tuple[tuple[str, ...], bool]:
    """Return the files of a video, and whether they are one for each frame."""
    backend: Mapping[str, Any] = stated.get("backend") or {}
    several = backend.get("filenames") or backend.get("filename") or stated.get("filename")
    if isinstance(several, list):
        return tuple(str(each).replace("\\", "/") for each in several), True
    return ((str(several).replace("\\", "/"),) if several and several != "." else ()), False
