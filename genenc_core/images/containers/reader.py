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
        container = self._opened(path)
        try:
            content = container.read(member, most_pixels=most_pixels)
        except BaseException:
            with contextlib.suppress(Exception):
                container.close()
            raise
        self._keep(path, container)
        return content

    def expect(self, path: str, members: Sequence[str]) -> None:
        """Begin to read members that are read next, where that is of use."""
        if members and kinds.is_remote(path):
            container = self._opened(path)
            container.expect(members)
            self._keep(path, container)

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
