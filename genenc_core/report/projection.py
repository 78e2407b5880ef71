"""Vectors of a sample of rows in two dimensions, what colours them, and which are nearest to which."""

import dataclasses
import importlib
from collections import Counter
from pathlib import PurePosixPath
from typing import Any, Final, Literal

import numpy as np

from genenc_core import errors
from genenc_core.stored.rows import Stored

Method = Literal["pca", "umap"]
FOLDER: Final = "folder"
ORDER: Final = "order"
MOST_KINDS: Final = 10
"""Colours that are told apart; further values are `other`."""
OTHER: Final = "other"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Projection:
    """Places of vectors in two dimensions."""

    xy: np.ndarray
    """float64 `[n, 2]`."""
    axes: tuple[str, str]
    method: str
    """What was done, in words."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Colouring:
    """What colours vectors: kinds, or a number."""

    by: str
    """In words."""
    kinds: tuple[str, ...] = ()
    """Names of the kinds; () for a number."""
    values: np.ndarray = dataclasses.field(default_factory=lambda: np.empty(0))
    """Index of the kind, or the number, `[n]`."""


def require(method: Method) -> None:
    """Check that a method is there.

    Raises:
        InputError: its package is not installed.
    """
    if method == "umap":
        try:
            importlib.import_module("umap")
        except ImportError as error:
            raise errors.InputError(
                "--projection 'umap' needs umap-learn, which is not installed: pip install umap-learn, or leave it "
                "out for pca"
            ) from error


def project(vectors: np.ndarray, method: Method = "pca", seed: int = 0) -> Projection:
    """Project finite vectors `[n, C]` to two dimensions.

    Raises:
        InputError: a package is not installed.
    """
    require(method)
    if method == "umap" and len(vectors) > 3:
        made: Any = importlib.import_module("umap")
        reducer = made.UMAP(n_components=2, metric="cosine", random_state=seed, n_neighbors=min(15, len(vectors) - 1))
        xy = np.asarray(reducer.fit_transform(vectors), np.float64)
        return Projection(xy=xy, axes=("UMAP 1", "UMAP 2"), method=f"UMAP (cosine, seed {seed})")
    # Imported late: it imports torch.
    from genenc_core.report import maps

    centred = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    axes, variances, total = maps.principal_axes(centred, 2)
    shares = [100 * float(each) / total if total > 0 else 0.0 for each in variances]
    names = (f"component 1 ({shares[0]:.0f} %)", f"component 2 ({shares[1]:.0f} %)")
    return Projection(xy=centred @ axes.T, axes=names, method="principal components")


def nearest(vectors: np.ndarray, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the positions and cosine similarities `[q, count]` of the vectors nearest to some of them, nearest first.

    Itself is not among them.
    """
    unit = vectors.astype(np.float64)
    lengths = np.linalg.norm(unit, axis=1, keepdims=True)
    unit = np.divide(unit, lengths, out=np.zeros_like(unit), where=lengths > 0)
    similar = unit[queries] @ unit.T
    similar[np.arange(len(queries)), queries] = -np.inf
    order = np.argsort(-similar, axis=1, kind="stable")[:, : max(min(count, len(vectors) - 1), 0)]
    return order, np.take_along_axis(similar, order, axis=1)


def colouring(source: Stored, rows: np.ndarray, by: str | None = None) -> Colouring:
    """Return what colours some rows: `folder`, `order`, a column of the list, or what tells most apart by default.

    Raises:
        InputError: there is no such column.
    """
    if by is None:
        by = next((name for name in (FOLDER, *source.columns) if _tells_apart(source, rows, name)), ORDER)
    if by == ORDER:
        return Colouring(by="order of rows", values=rows.astype(np.float64))
    if by == FOLDER:
        return _of_kinds("folder", _folders(source, rows))
    if by not in source.columns:
        known = ", ".join((FOLDER, ORDER, *source.columns))
        raise errors.InputError(f"--color-by {by!r} is no column of {source.place!r}; known: {known}")
    values = source.read(by, rows)
    if values.dtype.kind in "iuf" and len(np.unique(values)) > MOST_KINDS:
        return Colouring(by=f"column {by}", values=values.astype(np.float64))
    return _of_kinds(f"column {by}", [str(value) for value in values.tolist()])


def _tells_apart(source: Stored, rows: np.ndarray, by: str) -> bool:
    names = _folders(source, rows) if by == FOLDER else [str(value) for value in source.read(by, rows).tolist()]
    return 1 < len(set(names)) <= max(3 * MOST_KINDS, 2) and len(set(names)) < len(names)


def _folders(source: Stored, rows: np.ndarray) -> list[str]:
    return [str(PurePosixPath(name.partition("#")[0] if "#" in name else name).parent) for name in source.names(rows)]


def _of_kinds(by: str, names: list[str]) -> Colouring:
    counted = Counter(names).most_common()
    kept = [name for name, _ in counted[: MOST_KINDS if len(counted) <= MOST_KINDS else MOST_KINDS - 1]]
    kinds = sorted(kept) + ([OTHER] if len(kept) < len(counted) else [])
    at = {name: number for number, name in enumerate(kinds)}
    return Colouring(by=by, kinds=tuple(kinds), values=np.array([at.get(name, len(kinds) - 1) for name in names]))
