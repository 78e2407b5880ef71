"""Images that are objects of a bucket or files of a web server, read over the network by decode workers."""

import re
from collections.abc import Iterator, Sequence

from genenc_core import spec
from genenc_core.images.containers import kinds, remote_objects
from genenc_core.images.containers.container import Container, Content, Mark, Member
from genenc_core.images.containers.frames import Frames
from genenc_core.images.decode import decode
from genenc_core.images.sources import image_source

_COLON = "%3A"
"""For a colon in an ETag."""


class Remote(Container):
    """Objects with an image extension below a prefix, in the order of their keys; a glob chooses among them.

    A member's place is its ETag, by which an object that was replaced is noticed, and its key.
    """

    frames = False
    columns = ()

    def __init__(self, address: str) -> None:
        self._address = kinds.without_pattern(address)
        self._pattern = address.removeprefix(self._address).strip("/")
        place, prefix = remote_objects.split(self._address)
        self._single = place == "https://"
        self._objects = remote_objects.open_objects(place, "" if self._single else prefix.strip("/"))
        self._mark = Mark(-1, -1, -1)
        """That of the object that was listed last."""
        self._ahead = remote_objects.ReadAhead(self._get)

    @classmethod
    def open(cls, path: str, channels: spec.Channels | None = None) -> "Remote":  # noqa: ARG003
        """Take an address; nothing is asked yet.

        Raises:
            InputError: it is none, or obstore is not installed.
        """
        return cls(path)

    def members(self, frames: Frames) -> Iterator[Member]:  # noqa: ARG002 -- has none
        """Yield the objects; raises `OSError`."""
        if self._single:
            found = self._objects.head(self._address)
            self._mark = found.mark
            yield Member("", member_of(found.tag))
            return
        for key, found in self.chosen():
            hidden = any(part.startswith(".") for part in key.split("/"))
            if hidden or not image_source.has_image_extension(key):
                self.leave_out(key)
                continue
            self._mark = found.mark
            yield Member(key, member_of(found.tag, key))

    def chosen(self) -> Iterator[tuple[str, remote_objects.Found]]:
        """Yield the keys that the pattern chooses, whatever they are; raises `OSError`."""
        matches = re.compile(_as_regex(self._pattern)).match if self._pattern else None
        for key, found in self._objects.list():
            if matches is None or matches(key):
                yield key, found

    def expect(self, members: Sequence[str]) -> None:
        """Begin to read members."""
        self._ahead.expect(members)

    def read(self, at: str, *, most_pixels: int = decode.MAX_PIXELS) -> Content:  # noqa: ARG002 -- decoded later
        """Return an object's bytes; raises as `Container.read`."""
        return self._ahead.read(at)

    def _get(self, at: str) -> Content:
        tag, _, key = at.partition(":")
        data, found = self._objects.get(key)
        return Content(data, found.mark, changed=found.changed(tag.replace(_COLON, ":")))

    def close(self) -> None:
        """Stop reading."""
        self._ahead.close()


def member_of(tag: str, key: str = "") -> str:
    """Return where an object is, by its ETag and its key below the address that is its path."""
    return f"{tag.replace(':', _COLON)}:{key}"


def place_of(path: str, member: str) -> tuple[str, str]:
    """Return the address of a container that can be kept for many members, and where this one is in it.

    Objects that a list names are in containers of their own otherwise.
    """
    tag, _, key = member.partition(":")
    if key:
        return path, member
    place, key = remote_objects.split(path)
    return place, f"{tag}:{key}"


def _as_regex(pattern: str) -> str:
    """Return a regular expression for a pattern of `*`, `?`, `[...]`, which stay in a folder, and `**`."""
    found = re.findall(r"\*\*/|\*\*\Z|\*|\?|\[!?[^]]+\]|.", pattern, re.DOTALL)
    words = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return "".join(words.get(part, _class_or_text(part)) for part in found) + r"\Z"


def _class_or_text(part: str) -> str:
    if len(part) == 1:
        return re.escape(part)
    return (
        "["
        + ("^" if part[1] == "!" else "")
        + re.escape(part[2 if part[1] == "!" else 1 : -1]).replace(r"\-", "-")
        + "]"
    )
