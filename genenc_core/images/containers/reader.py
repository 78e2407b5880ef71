"""Reading of members by decode workers, which keep the containers that they read last open."""

import contextlib
from collections import OrderedDict

from genenc_core.images.containers import kinds
from genenc_core.images.containers.container import Container, Content

KEPT_OPEN = 4


class ContainerReader:
    """Reads members of any containers."""

    def __init__(self) -> None:
        self._open: OrderedDict[str, Container] = OrderedDict()

    def read(self, path: str, member: str, *, most_pixels: int) -> Content:
        """Return the content of a member.

        Raises:
            ImageUnreadable: the container or the member is damaged, or it has more than `most_pixels`.
            OSError: the container cannot be read.
        """
        container = self._open.pop(path, None) or kinds.open_container(path)
        try:
            content = container.read(member, most_pixels=most_pixels)
        except BaseException:
            with contextlib.suppress(Exception):
                container.close()
            raise
        self._open[path] = container
        while len(self._open) > KEPT_OPEN:
            self._open.popitem(last=False)[1].close()
        return content
