"""Datasets of drawn numbers, made without encoding: parts of given lengths, and versions of them."""

import dataclasses
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import zarr

from genenc_core import stored_arrays
from genenc_core.dataset import documents, part_arrays, rows
from genenc_core.dataset.documents import Part, Version
from genenc_core.dataset.folder import DatasetFolder
from genenc_core.run import records
from genenc_core.store import layout, run_store
from genenc_core.store.backends.objects import Root, open_objects

POINTS = ("snout", "tail")
SHARD_ROWS = 8
_SHAPES: Mapping[str, tuple[tuple[str, ...], tuple[int, ...], str, int, bool]] = {
    "features": (("image", "features_channel"), (5,), "float32", 2, False),
    "maps": (("image", "maps_channel", "y", "x"), (3, 2, 4), "float16", 4, True),
    "image_height": (("image",), (), "int32", 8, True),
}
"""Dims, shape of a row, type, rows of a chunk, whether compressed."""


@dataclasses.dataclass(frozen=True)
class Made:
    """A dataset and what its parts hold."""

    folder: DatasetFolder
    blocks: list[dict[str, np.ndarray]] = dataclasses.field(repr=False)
    """Rows of each part by array."""

    def current(self, name: str, gone: Mapping[int, Iterable[int]] = MappingProxyType({})) -> np.ndarray:
        """Return the rows of an array that are not gone, by number of the part."""
        kept = [
            np.delete(block[name], list(gone.get(number, ())), axis=0) for number, block in enumerate(self.blocks, 1)
        ]
        return np.concatenate(kept)


def make(root: Path, lengths: Sequence[int], *, shard_rows: int = SHARD_ROWS, not_stored: Sequence[int] = ()) -> Made:
    """Create parts of these lengths, with every shard stored but `not_stored` ones, and a version of all rows."""
    root.mkdir(parents=True)
    objects = open_objects(root)
    identity = {"model": "drawn", "weights": "none", "products": ["features", "maps"]}
    records.create_json(objects, documents.DATASET, documents.meaning_to_json(identity, list(POINTS), []))
    (root / documents.PARTS).mkdir()
    blocks, described = [], []
    templates: list[dict[str, dict[str, Any]]] = []
    for number, length in enumerate(lengths, 1):
        block = _draw(number, length)
        described.append(_write(root, number, block, templates, shard_rows=shard_rows, not_stored=not_stored))
        blocks.append(block)
    folder = DatasetFolder(root)
    publish(folder, described, templates)
    return Made(folder, blocks)


def copies(root: Path, *, parts: int, rows_each: int, shard_rows: int) -> DatasetFolder:
    """Create a dataset of parts that are copies of one, but for the names of their images."""
    made = make(root, [rows_each], shard_rows=shard_rows)
    version = made.folder.version()
    (part,) = version.parts
    (root / version.key).unlink()
    described = [part.model_copy(update={"name": documents.part_name(number)}) for number in range(1, parts + 1)]
    for copy in described[1:]:
        place = root / documents.PARTS / copy.name
        shutil.copytree(root / documents.PARTS / part.name, place)
        names = np.array([f"p{copy.number}-{row}.png" for row in range(rows_each)], object)
        zarr.open_array(place / "features.zarr" / "image_id", mode="r+")[:] = names
    publish(made.folder, described, version.templates)
    return made.folder


def publish(
    folder: DatasetFolder,
    parts: Sequence[Part],
    templates: Sequence[dict[str, dict[str, Any]]],
    changes: pa.Table | None = None,
) -> Version:
    """Create the next version."""
    number = len(folder.versions()) + 1
    version = Version(
        version=number,
        previous="",
        parts=list(parts),
        templates=list(templates),
        last_part=max((part.number for part in parts), default=1),
        changes=rows.write_changes(folder, number, rows.no_changes() if changes is None else changes),
        counts={},
        made={},
    )
    assert folder.create_version(version)
    return version


def change(made: Made, changes: pa.Table) -> Version:
    """Create a version with the parts of the newest one, and these changes."""
    version = made.folder.version()
    return publish(made.folder, version.parts, version.templates, changes)


def put(folder: DatasetFolder, target: Root) -> DatasetFolder:
    """Copy a dataset to S3."""
    objects = open_objects(target)
    for key, _ in folder.objects.walk(""):
        objects.write_new(key, folder.objects.read(key, most=None))
    return DatasetFolder(target)


def _draw(number: int, length: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(number)
    block = {
        name: (draw.random((length, *shape)) * 1000).astype(dtype) for name, (_, shape, dtype, _, _) in _SHAPES.items()
    }
    names = np.array([f"p{number}-{row}.png" for row in range(length)], object)
    return {
        **block,
        "image_id": names,
        "path": np.array([f"folder/{name}" for name in names], object),
        "point_x": draw.random((length, len(POINTS))),
        "point_y": draw.random((length, len(POINTS))),
        "status": draw.integers(1, 3, length).astype(np.uint8),
    }


def _write(
    root: Path,
    number: int,
    block: Mapping[str, np.ndarray],
    templates: list[dict[str, dict[str, Any]]],
    *,
    shard_rows: int,
    not_stored: Sequence[int],
) -> Part:
    length = len(block["status"])
    plan = layout.StorePlan(
        rows=length,
        shard_rows=shard_rows,
        arrays=tuple(_plans(length, shard_rows)),
        fingerprint=f"drawn {number}",
        identity={},
        attributes={},
    )
    name = documents.part_name(number)
    place = root / documents.PARTS / name
    place.mkdir()
    store = run_store.RunStore.create(place, plan, coordinates=list(_coordinates(block)))
    for shard in range(plan.shard_count):
        if shard not in not_stored:
            at = slice(*plan.shard_range(shard))
            store.commit(shard, {each: block[each][at] for each in _SHAPES}, block["status"][at], details={})
    template, chunks = {}, {}
    for key in sorted(key for key in store.created if key.count("/") == 1 and key.endswith("zarr.json")):
        array = key.partition("/")[0]
        template[array], chunks[array] = part_arrays.split(json.loads(store.metadata(array)))
    if template not in templates:
        templates.append(template)
    index = templates.index(template)
    return Part(name=name, rows=length, store=store.document, values="", template=index, chunks=chunks)


def _plans(length: int, shard_rows: int) -> Iterator[layout.ArrayPlan]:
    for name, (dims, shape, dtype, chunk_rows, compress) in _SHAPES.items():
        yield layout.ArrayPlan(
            name=name,
            shape=(length, *shape),
            dtype=dtype,
            dims=dims,
            chunk_rows=min(chunk_rows * shard_rows // SHARD_ROWS, shard_rows),
            fill=-1 if dtype == "int32" else float("nan"),
            attributes={"coordinates": "image_id path point_x point_y", "units": "1"},
            compress=compress,
        )


def _coordinates(block: Mapping[str, np.ndarray]) -> Iterator[layout.CoordinatePlan]:
    for array in stored_arrays.written_by("creator", with_points=True):
        values = list(POINTS) if array.name == stored_arrays.POINT else block[array.name]
        yield layout.CoordinatePlan(
            name=array.name,
            dims=array.dims,
            kind=array.dtype,
            values=values.tolist() if array.dtype == "string" and not isinstance(values, list) else values,
            attributes=array.attributes,
        )
