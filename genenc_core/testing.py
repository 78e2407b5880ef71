"""For tests of your own flows: labelled sample images, a tiny encoder, runs that fail on purpose, comparison of runs.

Nothing here needs a network or a GPU; all of it is the same on every machine.
"""

import contextlib
import csv
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
from PIL import Image

from genenc_core import api, errors
from genenc_core.run import worker

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "ENCODER",
    "assert_runs_equal",
    "failing_shards",
    "interrupted",
    "options",
    "sample_images",
    "sample_regions",
    "tiny_encoder",
]

ENCODER = "genenc_core.testing:tiny_encoder"
"""The tiny encoder as a model's name."""
CELL = 8
"""Pixels per cell of the tiny encoder's map, in each direction."""
POINTS = ("nose", "tail")


def sample_images(folder: str | Path, count: int = 6, *, size: tuple[int, int] = (80, 64), seed: int = 0) -> Path:
    """Write PNG images `img_000.png`, ... of different content, and `labels.csv` beside the folder.

    Args:
        folder: created if necessary; images that are there with other names stay.
        count: number of images.
        size: width and height in pixels.
        seed: other seeds give other images and points.

    Returns:
        The labels: `image,point,x,y` in pixels, of the points `nose` and `tail`; every fourth image has no `tail`.

    Example:
        >>> labels = sample_images("some/photos", 3)
        >>> labels.name, labels.read_text().splitlines()[0]
        ('labels.csv', 'image,point,x,y')
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for index in range(count):
        drawn = np.random.default_rng([seed, index])
        coarse = Image.fromarray(drawn.integers(0, 256, (9, 9, 3), np.uint8))
        name = f"img_{index:03d}.png"
        coarse.resize(size, Image.Resampling.BICUBIC).save(folder / name, compress_level=1)
        places = (drawn.uniform(0, 1, (len(POINTS), 2)) * size).round(1).tolist()
        lines += [(name, point, *xy) for point, xy in zip(POINTS, places, strict=True) if point == "nose" or index % 4]
    labels = folder.parent / "labels.csv"
    with labels.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("image", "point", "x", "y"), *lines])
    return labels


def sample_regions(folder: str | Path, count: int = 6, *, size: tuple[int, int] = (80, 64), seed: int = 0) -> Path:
    """Write `regions.csv` beside a folder of `sample_images`: boxes in them.

    Args:
        folder: that of the images; it need not exist.
        count: number of images.
        size: their width and height in pixels.
        seed: other seeds give other boxes.

    Returns:
        The regions: `image,region,x,y,width,height,category` in pixels; none to two per image, `mouse` or `rat`.

    Example:
        >>> regions = sample_regions("some/photos", 3)
        >>> regions.name, regions.read_text().splitlines()[0]
        ('regions.csv', 'image,region,x,y,width,height,category')
    """
    lines = []
    for index in range(count):
        drawn = np.random.default_rng([seed, index, 1])
        for number in range(index % 3):
            sides = (drawn.uniform(0.2, 0.5, 2) * size).round(1)
            corner = (drawn.uniform(0, 1, 2) * (size - sides)).round(1)
            category = ("mouse", "rat")[number]
            lines.append((f"img_{index:03d}.png", number + 1, *corner.tolist(), *sides.tolist(), category))
    place = Path(folder).parent / "regions.csv"
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("image", "region", "x", "y", "width", "height", "category"), *lines])
    return place


def tiny_encoder() -> "nn.Module":
    """Return an encoder without weights: [B, 3, H, W] -> [B, 3, H/8, W/8], the mean colour of each cell.

    Its vectors can be worked out by hand, and the one at a point tells where the point is.
    """
    from torch import nn

    module = nn.AvgPool2d(CELL)
    module.genenc = {"image_size": 64, "fit": "stretch"}  # type: ignore[assignment]
    return module


def options(**more: Any) -> dict[str, Any]:
    """Return options that make a run small and the same everywhere; `more` override and add to them.

    Example:
        >>> labels = sample_images("tested/photos")
        >>> run = api.extract("tested/photos", out="tested/run", points=str(labels), **options())
        >>> run.arrays().probes.shape
        (6, 2, 3)
    """
    small = {"model": ENCODER, "device": "cpu", "batch_size": 2, "shard_rows": 2, "decode_workers": 1, "trust": True}
    return {**small, **more}


def assert_runs_equal(one: str | Path | api.Run, other: str | Path | api.Run, *, atol: float = 0.0) -> None:
    """Raise `AssertionError` naming the first difference of two runs: images, statuses, or values of any product.

    Args:
        one: a run, or its place.
        other: the run to compare with.
        atol: largest allowed difference of values; the bits must be equal by default.

    Example:
        >>> labels = sample_images("compared/photos")
        >>> for out in ("compared/one", "compared/other"):
        ...     run = api.extract("compared/photos", out=out, **options())
        >>> assert_runs_equal("compared/one", "compared/other")
    """
    first, second = (found if isinstance(found, api.Run) else api.Run.open(found) for found in (one, other))
    before, after = first.arrays().load(), second.arrays().load()
    names, others = sorted(map(str, before.variables)), sorted(map(str, after.variables))
    assert names == others, f"arrays differ: {names} and {others}"
    for name in names:
        left, right = before[name].values, after[name].values
        assert left.shape == right.shape, f"{name}: shapes {left.shape} and {right.shape}"
        if left.dtype.kind == "f":
            same = np.isclose(left, right, rtol=0, atol=atol, equal_nan=True)
        else:
            same = np.asarray(left == right)
        if not same.all():
            row = int(np.argwhere(~same)[0][0])
            images = before["region_image_id" if before[name].dims[:1] == ("region",) else "image_id"].values
            raise AssertionError(f"{name}: row {row} ({images[row] if row < len(images) else '-'}) differs")


@contextlib.contextmanager
def failing_shards(shards: Collection[int], reason: str = "no space left on device") -> Iterator[None]:
    """Let these shards fail in this process, as a full disk does; all others are stored.

    Example:
        >>> labels = sample_images("failing/photos")
        >>> with failing_shards([1]):
        ...     api.extract("failing/photos", out="failing/run", **options())
        Traceback (most recent call last):
        genenc_core.run.records.Incomplete: 1 of 3 shards not done: 1
        >>> api.Run.open("failing/run").encode(trust=True).status.complete
        True
    """
    encode = worker.Worker.encode

    def failing(self: worker.Worker, shard: int, **options: Any) -> Any:
        if shard not in shards:
            return encode(self, shard, **options)
        error = errors.ShardError(shard, reason)
        self.folder.note_failure(shard, reason, self.options.session)
        raise error

    with mock.patch.object(worker.Worker, "encode", failing):
        yield


@contextlib.contextmanager
def interrupted(after: int = 1) -> Iterator[None]:
    """Interrupt the work in this process once so many shards are stored, as Ctrl-C or a lost worker does.

    Two shards are worked on at a time, so one more may be stored.

    Example:
        >>> labels = sample_images("interrupted/photos")
        >>> with contextlib.suppress(KeyboardInterrupt), interrupted(after=1):
        ...     api.extract("interrupted/photos", out="interrupted/run", **options())
        >>> api.Run.open("interrupted/run").status().complete
        False
        >>> api.extract("interrupted/photos", out="interrupted/run", **options()).status().complete
        True
    """
    encode, stored = worker.Worker.encode, list[int]()

    def counted(self: worker.Worker, shard: int, **options: Any) -> Any:
        if len(stored) >= after:
            raise KeyboardInterrupt
        report = encode(self, shard, **options)
        stored.append(shard)
        return report

    with mock.patch.object(worker.Worker, "encode", counted):
        yield
