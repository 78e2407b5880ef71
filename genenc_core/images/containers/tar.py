"""Tar archives, such as WebDataset's: members are read in place."""

import os
import tarfile
from collections.abc import Iterator

from genenc_core import spec
from genenc_core.images.containers.container import Container, Content, Mark, Member, one_line, read_at
from genenc_core.images.containers.frames import Frames
from genenc_core.images.decode import decode
from genenc_core.images.decode.decoded import ImageUnreadable
from genenc_core.images.decode.limits import MAX_BYTES
from genenc_core.images.sources import image_source

_PART = 2**16


class Tar(Container):
    """An uncompressed tar archive; regular files with an image extension are its images, in its own order."""

    frames = False
    columns = ()

    def __init__(self, path: str, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor
        self._mark = Mark.of(os.fstat(descriptor))

    @classmethod
    def open(cls, path: str, channels: spec.Channels | None = None) -> "Tar":  # noqa: ARG003
        """Open it; raises `OSError`."""
        return cls(path, os.open(path, os.O_RDONLY | os.O_NONBLOCK))

    def members(self, frames: Frames) -> Iterator[Member]:  # noqa: ARG002 -- has none
        """Yield the images.

        Raises:
            ImageUnreadable: it is compressed, damaged or truncated, or holds two images of one name.
        """
        seen: set[int] = set()
        end = 0
        try:
            with self._opened() as archive:
                for info in archive:
                    archive.members.clear()  # type: ignore[attr-defined] # it would keep all
                    end = info.offset_data + (info.size if info.isreg() else 0)
                    if end > self._mark.size:
                        raise ImageUnreadable(f"truncated tar: {info.name!r} ends after the end of the file")
                    name = info.name.removeprefix("./")
                    if not _is_image(info, name):
                        if not info.isdir():
                            self.leave_out(name)
                        continue
                    if hash(name) in seen:
                        raise ImageUnreadable(f"it holds {name!r} twice: write it once")
                    seen.add(hash(name))
                    yield Member(f"/{name}", f"{info.offset_data}+{info.size}")
                stopped = archive.offset
        except (tarfile.TarError, EOFError, ValueError) as error:
            reason = f"damaged or compressed tar ({one_line(error)}): unpack it, or write it again without compression"
            raise ImageUnreadable(reason) from error
        self._require_end(stopped)

    def _opened(self) -> tarfile.TarFile:
        return tarfile.open(self._path, "r:", errorlevel=2)

    def read_part(self, size: int, start: int) -> bytes:
        """Return bytes of the archive, fewer at its end."""
        return os.pread(self._descriptor, size, start)

    def _require_end(self, offset: int) -> None:
        """Check that the list ended because the archive does; `tarfile` also ends at a header that is damaged."""
        if offset + 2 * tarfile.BLOCKSIZE > self._mark.size:
            raise ImageUnreadable("truncated tar: it does not end with two empty blocks")
        at = offset
        while part := self.read_part(_PART, at):
            if any(part):
                raise ImageUnreadable(f"damaged tar: what follows byte {offset} is neither a file nor its end")
            at += len(part)

    def read(self, at: str, *, most_pixels: int = decode.MAX_PIXELS) -> Content:  # noqa: ARG002 -- they are decoded later
        """Return a file's bytes.

        Raises:
            ImageUnreadable: it is too large, or the archive is truncated.
            OSError: it cannot be read.
        """
        offset, size = map(int, at.split("+"))
        if size > MAX_BYTES:
            raise ImageUnreadable(f"{size} bytes, above the limit of {MAX_BYTES} bytes per file")
        data = read_at(self._descriptor, size, offset)
        if len(data) < size:
            raise ImageUnreadable(f"truncated tar: {len(data)} of {size} bytes")
        return Content(data, Mark.of(os.fstat(self._descriptor)))

    def close(self) -> None:
        """Close it."""
        os.close(self._descriptor)


def _is_image(info: tarfile.TarInfo, name: str) -> bool:
    hidden = name.rpartition("/")[2].startswith(".")
    return info.isreg() and not info.issparse() and not hidden and image_source.has_image_extension(name)
