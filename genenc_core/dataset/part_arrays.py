"""Zarr metadata of a part's arrays, as a template that parts share and the numbers that differ between them."""

import copy
import json
from collections.abc import Mapping
from typing import Any

from genenc_core import errors
from genenc_core.run.folder import RunFolder
from genenc_core.store import zarr_bytes

Template = Mapping[str, Mapping[str, Any]]
"""Array name -> `zarr.json`, with 0 for numbers of rows."""
Chunks = Mapping[str, tuple[int, int]]
"""Array name -> rows per stored object, and per inner chunk of it (equal without sharding)."""
IMAGE, REGION = "image", "region"


def read(run: RunFolder) -> tuple[Template, Chunks]:
    """Return the metadata of all arrays of a run.

    Raises:
        StoreError: it cannot be read, or is not what the run was made with.
    """
    template: dict[str, Mapping[str, Any]] = {}
    chunks: dict[str, tuple[int, int]] = {}
    for name in sorted(key.partition("/")[0] for key in run.store.created if key.endswith(f"/{zarr_bytes.METADATA}")):
        document = json.loads(run.store.metadata(name))
        template[name], chunks[name] = split(document)
    return template, chunks


def split(document: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[int, int]]:
    """Return an array's `zarr.json` without its numbers of rows, and its rows per object and per inner chunk."""
    made = copy.deepcopy(dict(document))
    if not _has_rows(made):
        return made, (0, 0)
    outer = _grid(made)[0]
    inner = outer
    made["shape"][0] = _grid(made)[0] = 0
    for codec in _sharding(made):
        inner, codec["chunk_shape"][0] = codec["chunk_shape"][0], 0
    return made, (outer, inner)


def join(template: Mapping[str, Any], rows: int, chunks: tuple[int, int]) -> dict[str, Any]:
    """Return the `zarr.json` of a part's array of so many rows; the reverse of `split`."""
    made = copy.deepcopy(dict(template))
    if not _has_rows(made):
        return made
    made["shape"][0], (_grid(made)[0], inner) = rows, chunks
    for codec in _sharding(made):
        codec["chunk_shape"][0] = inner
    return made


def is_per_image(document: Mapping[str, Any]) -> bool:
    """Return whether an array has a row per image."""
    return _first_axis(document) == IMAGE


def is_per_region(document: Mapping[str, Any]) -> bool:
    """Return whether an array has a row per region."""
    return _first_axis(document) == REGION


def _has_rows(document: Mapping[str, Any]) -> bool:
    return _first_axis(document) in (IMAGE, REGION)


def _first_axis(document: Mapping[str, Any]) -> object:
    return document["dimension_names"][0] if document["dimension_names"] else None


def _grid(document: Mapping[str, Any]) -> list[int]:
    shape: list[int] = document["chunk_grid"]["configuration"]["chunk_shape"]
    return shape


def _sharding(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [codec["configuration"] for codec in document["codecs"] if codec["name"] == "sharding_indexed"]


def refuse_invalid(template: Any, *, subject: str) -> None:
    """Raise `StoreError` unless a template from a document is of the form that `read` returns."""
    try:
        for document in template.values():
            join(document, 0, (0, 0))
    except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
        raise errors.StoreError(f"{subject} is damaged: arrays of a part: {errors.reason(error)}") from error
