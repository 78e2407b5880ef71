"""Tar archives in buckets and on web servers: their headers are read by parts, then single members."""

import io
import tarfile
import urllib.parse
from collections.abc import Iterator, Sequence
from typing import Any

from genenc_core import spec
from genenc_core.images.containers import remote_objects
from genenc_core.images.containers.container import Content, Member
from genenc_core.images.containers.frames import Frames
from genenc_core.images.containers.tar import Tar
from genenc_core.images.decode import decode
from genenc_core.images.decode.decoded import ImageUnreadable
from genenc_core.images.decode.limits import MAX_BYTES

_HEADERS = 8192
"""Bytes that are read for a header: small members that follow, such as labels, come with it."""


class RemoteTar(Tar):
    """An uncompressed tar archive that an address names; no member is read while it is listed."""

    def __init__(self, address: str) -> None:
        self._path = address
        place, self._key = remote_objects.split(address)
        self._objects = remote_objects.open_objects(place)
        self._found: remote_objects.Found | None = None
        self._ahead = remote_objects.ReadAhead(self._get)

    @classmethod
    def open(cls, path: str, channels: spec.Channels | None = None) -> "RemoteTar":  # noqa: ARG003
        """Take an address; nothing is asked yet."""
        return cls(path)

    def members(self, frames: Frames) -> Iterator[Member]:
        """Yield the images; raises as `Tar.members`."""
        self._found = self._objects.head(self._key)
        self._mark = self._found.mark
        tag = urllib.parse.quote(self._found.tag)
        for each in super().members(frames):
            yield each._replace(at=f"{each.at}@{tag}")

    def _opened(self) -> Any:
        return tarfile.open(fileobj=_Headers(self), mode="r:", errorlevel=2)

    def read_part(self, size: int, start: int) -> bytes:
        """Return bytes of the archive; raises as `Container.read`."""
        size = min(size, self._mark.size - start)
        if size <= 0:
            return b""
        part, found = self._objects.get_range(self._key, start, size)
        if self._found is not None and (found.mark.size != self._mark.size or found.changed(self._found.tag)):
            raise ImageUnreadable("it was replaced while it was read")
        return part

    def expect(self, members: Sequence[str]) -> None:
        """Begin to read members."""
        self._ahead.expect(members)

    def read(self, at: str, *, most_pixels: int = decode.MAX_PIXELS) -> Content:  # noqa: ARG002 -- decoded later
        """Return a file's bytes; raises as `Tar.read`."""
        return self._ahead.read(at)

    def _get(self, at: str) -> Content:
        place, _, tag = at.partition("@")
        offset, size = map(int, place.split("+"))
        if size > MAX_BYTES:
            raise ImageUnreadable(f"{size} bytes, above the limit of {MAX_BYTES} bytes per file")
        if not size:
            found = self._objects.head(self._key)
            return Content(b"", found.mark, changed=found.changed(urllib.parse.unquote(tag)))
        data, found = self._objects.get_range(self._key, offset, size)
        changed = found.changed(urllib.parse.unquote(tag))
        if len(data) < size and changed is None:
            raise ImageUnreadable(f"truncated tar: {len(data)} of {size} bytes")
        return Content(data, found.mark, changed=changed)

    def close(self) -> None:
        """Stop reading."""
        self._ahead.close()


class _Headers(io.RawIOBase):
    """An archive as a file of which parts are read, each a little longer than asked for."""

    def __init__(self, archive: RemoteTar) -> None:
        self._archive = archive
        self._size = archive._mark.size
        self._at = 0
        self._start, self._part = 0, b""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def read(self, size: int = -1) -> bytes:
        size = self._size - self._at if size < 0 else size
        inside = self._at - self._start
        if inside < 0 or inside + size > len(self._part):
            self._start, self._part = self._at, self._archive.read_part(max(size, _HEADERS), self._at)
            inside = 0
        found = self._part[inside : inside + size]
        self._at += len(found)
        return found
