"""One model as artifacts of several fixed batches: which of them run a batch, and running it in those pieces."""

import functools
import threading
from collections.abc import Callable, Mapping, Sequence

import torch

from genenc_core.export import naming
from genenc_core.export.formats import record


def cover(count: int, sizes: Sequence[int]) -> tuple[int, ...]:
    """Return the batch sizes, largest first, that encode `count` images with the fewest images computed.

    Of two covers that compute equally many images (padding counts) the one with fewer calls is taken.
    """
    return _cover(count, tuple(sorted(set(sizes))))


@functools.lru_cache(maxsize=4096)
def _cover(count: int, sizes: tuple[int, ...]) -> tuple[int, ...]:
    # calls[n]: fewest calls that compute exactly n images; last[n]: one of the sizes used for it.
    most = count + sizes[0]
    calls: list[int | None] = [0, *[None] * most]
    last = [0] * (most + 1)
    for total in range(1, most + 1):
        for size in sizes:
            before = calls[total - size] if size <= total else None
            best = calls[total]
            if before is not None and (best is None or before + 1 < best):
                calls[total], last[total] = before + 1, size
    # Multiples of the smallest size are always possible, so one lies in count .. count + smallest - 1.
    total = next(total for total in range(count, most + 1) if calls[total] is not None)
    found = []
    while total:
        found.append(last[total])
        total -= last[total]
    return tuple(sorted(found, reverse=True))


class VariantRunner:
    """Runs any batch through artifacts of fixed batch sizes; each is loaded when it is first needed."""

    def __init__(self, loaders: Mapping[int, Callable[[], record.Loaded]]) -> None:
        self._loaders = dict(loaders)
        self._loaded: dict[int, record.FileRunner] = {}
        self._lock = threading.Lock()

    @property
    def loaded(self) -> tuple[int, ...]:
        """Batch sizes of the artifacts in memory."""
        return tuple(sorted(self._loaded))

    def __call__(self, images: torch.Tensor) -> Sequence[torch.Tensor] | Mapping[str, torch.Tensor]:
        """Encode [B, 3, H, W]; surplus rows of a padded call are cut off."""
        parts: list[Sequence[torch.Tensor]] = []
        names: tuple[str, ...] | None = None
        start = 0
        for size in cover(len(images), tuple(self._loaders)):
            piece = images[start : start + size]
            start += len(piece)
            found = self._runner(size)(_padded(piece, size))
            if isinstance(found, Mapping):
                names = names or tuple(found)
                found = naming.ordered(found, names)
            parts.append([tensor[: len(piece)] for tensor in found])
        whole = parts[0] if len(parts) == 1 else [torch.cat(tensors) for tensors in zip(*parts, strict=True)]
        return whole if names is None else dict(zip(names, whole, strict=True))

    def _runner(self, size: int) -> record.FileRunner:
        with self._lock:
            if size not in self._loaded:
                self._loaded[size] = self._loaders[size]().run
            return self._loaded[size]


def _padded(images: torch.Tensor, size: int) -> torch.Tensor:
    """Return `size` images, the last one repeated."""
    missing = size - len(images)
    return images.contiguous() if missing == 0 else torch.cat([images, images[-1:].expand(missing, -1, -1, -1)])
