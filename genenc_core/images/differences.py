"""How two lists of manifest rows differ, in words."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from genenc_core.images import rows

_SHOWN = 3


def describe(old: pa.Table, new: pa.Table, *, point_names: tuple[Sequence[str], Sequence[str]]) -> str:
    """Return in one line what was added, removed, changed on disk, reordered, or got other points.

    Args:
        old: image_id, path, bytes, mtime_ns and, with points, point_x and point_y.
        new: the same of the other manifest.
        point_names: of the old and of the new one.
    """
    at = pc.index_in(new["image_id"], value_set=old["image_id"].combine_chunks())
    known = pc.is_valid(at)
    position = at.drop_null().to_numpy()
    kept_new, kept_old = new.filter(known), old.take(position)
    gone = np.ones(old.num_rows, dtype=bool)
    gone[position] = False
    changed, details = _changed(kept_old, kept_new)
    added = new["image_id"].filter(pc.invert(known)).to_pylist()
    removed = old["image_id"].filter(pa.array(gone)).to_pylist()
    said: list[str] = []
    for count, what, names in (
        (len(added), "added", added),
        (len(removed), "removed", removed),
        (changed, "changed on disk", details),
    ):
        if count:
            noun = "" if said else " image" if count == 1 else " images"
            more = ", ..." if count > _SHOWN else ""
            said.append(f"{count}{noun} {what} ({', '.join(names[:_SHOWN])}{more})")
    if (np.diff(position) < 0).any():
        said.append("the order of the images differs")
    said += _points(kept_old, kept_new, point_names)
    return ", ".join(said) or "no difference"


def _changed(old: pa.Table, new: pa.Table) -> tuple[int, list[str]]:
    """Return how many of the same images changed, and the first of them in words."""
    differ = pc.or_(
        pc.or_(pc.not_equal(old["bytes"], new["bytes"]), pc.not_equal(old["mtime_ns"], new["mtime_ns"])),
        pc.not_equal(old["path"], new["path"]),
    )
    before, after = old.filter(differ), new.filter(differ)
    pairs = zip(before.slice(0, _SHOWN).to_pylist(), after.slice(0, _SHOWN).to_pylist(), strict=True)
    return after.num_rows, [_detail(*pair) for pair in pairs]


def _detail(old: dict[str, object], new: dict[str, object]) -> str:
    name = new["image_id"]
    if old["path"] != new["path"]:
        return f"{name}: was {old['path']}, is {new['path']}"
    if old["bytes"] != new["bytes"]:
        return f"{name}: {old['bytes']} -> {new['bytes']} bytes"
    return f"{name}: same size, other time"


def _points(old: pa.Table, new: pa.Table, names: tuple[Sequence[str], Sequence[str]]) -> list[str]:
    if list(names[0]) != list(names[1]):
        return [f"point names differ ({', '.join(names[0]) or 'none'} -> {', '.join(names[1]) or 'none'})"]
    if not names[0] or not old.num_rows:
        return []
    differ = np.zeros(old.num_rows, dtype=bool)
    for column in rows.POINT_COLUMNS:
        pair = [rows.flat_points(table[column]).reshape(old.num_rows, -1) for table in (old, new)]
        differ |= ~((pair[0] == pair[1]) | (np.isnan(pair[0]) & np.isnan(pair[1]))).all(axis=1)
    return [f"points differ in {differ.sum()} image{'s' if differ.sum() > 1 else ''}"] if differ.any() else []
