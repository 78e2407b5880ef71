"""Reading of members by decode workers, which keep the containers that they read last open."""

import contextlib
from collections import OrderedDict
from collections.abc import Sequence

from genenc_core import spec
from genenc_core.images.containers import kinds
from genenc_core.images.containers.container import Container, Content

KEPT_OPEN = 4


class ContainerReader:
    """Reads members of any containers."""

    def __init__(self, channels: spec.Channels | None = None) -> None:
        """`channels`: of arrays and TIFFs the samples are read, instead of RGB."""
        self._channels = channels
        self._open: OrderedDict[str, Container] = OrderedDict()

    def read(self, path: str, member: str, *, most_pixels: int) -> Content:
        """Return the content of a member.

        Raises:
            ImageUnreadable: the container or the member is damaged, or it has more than `most_pixels`.
            OSError: the container cannot be read.
        """
        path, member = _place(path, member)
        container = self._opened(path)
        try:
            content = container.read(member, most_pixels=most_pixels)
        except BaseException:
            with contextlib.suppress(Exception):
                container.close()
            raise
        self._keep(path, container)
        return content

    def expect(self, paths: Sequence[str], members: Sequence[str]) -> None:
        """Begin to read members that are read next, where that is of use."""
        by_place: dict[str, list[str]] = {}
        for path, member in zip(paths, members, strict=True):
            if kinds.is_remote(path):
                place, at = _place(path, member)
                by_place.setdefault(place, []).append(at)
        for place, inside in by_place.items():
            container = self._opened(place)
            container.expect(inside)
            self._keep(place, container)

    def close(self) -> None:
        """Close the containers that are open."""
        while self._open:
            self._open.popitem()[1].close()

    def _opened(self, path: str) -> Container:
        return self._open.pop(path, None) or kinds.open_container(path, self._channels)

    def _keep(self, path: str, container: Container) -> None:
        self._open[path] = container
        while len(self._open) > KEPT_OPEN:
            self._open.popitem(last=False)[1].close()


def _place(path: str, member: str) -> tuple[str, str]:
    """Return a container that is worth keeping, and where a member is in it."""
    if not kinds.is_remote(path) or kinds.remote_extension(path) == "tar":
        return path, member
    from genenc_core.images.containers import remote

    return remote.place_of(path, member)
