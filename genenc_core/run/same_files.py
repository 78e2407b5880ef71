"""Whether images that are given again for a run are those that it was made of."""

from pathlib import Path

import numpy as np

from genenc_core import errors
from genenc_core.images.containers import kinds
from genenc_core.images.decode import geometry, load_image
from genenc_core.images.decode.limits import Limits
from genenc_core.images.sources import manifest
from genenc_core.run.folder import RunFolder

_READ = 16
"""Files that are read if those of the run are gone."""


def refuse_others(run: RunFolder, listed: manifest.Manifest) -> None:
    """Raise `OtherRunError` if images of the same names, sizes and times are in another place, and are other files.

    They are if the run's own are still there, or if some that are read have another content than was stored.
    """
    known, given = (rows.read(0, 1).paths[0] for rows in (run.manifest, listed))
    own, other = (Path(kinds.place_of(path)) if run.manifest.has_members else Path(path) for path in (known, given))
    if known == given:
        return
    if own.exists():
        if not (other.exists() and own.samefile(other)):
            raise _refusal(run, f"start with {known!r}, which still exists, but those given start with {given!r}")
    elif differs := _first_other(run, listed):
        raise _refusal(run, f"were in {str(run.manifest.root)!r}, which is gone, and {differs!r} has another content")


def _refusal(run: RunFolder, what: str) -> errors.OtherRunError:
    return errors.OtherRunError(
        f"the images of the run {run.root!r} {what}: different files with the same names, sizes and times. Give "
        "another --out, or continue with the run's images (`genenc resume`)"
    )


def _first_other(run: RunFolder, listed: manifest.Manifest) -> str:
    """Return the first file of some whose content is not that of the row that is stored; "" if there is none."""
    reader = load_image.Reader(geometry.Fitter(run.preprocessing), Limits())
    ranges = np.array([run.store.shard_range(shard) for shard in sorted(run.store.committed())]).reshape(-1, 2)
    stored = np.cumsum(ranges[:, 1] - ranges[:, 0])
    for at in np.unique(np.linspace(0, stored[-1] - 1, _READ).astype(int)).tolist() if len(stored) else ():
        within = int(np.searchsorted(stored, at, side="right"))
        row = int(ranges[within, 1] - stored[within] + at)
        shard = row // run.store.plan.shard_rows
        record = run.store.record(shard)
        recorded = record.details.get("input_sha256") if record else None
        before = recorded[row - run.store.shard_range(shard)[0]] if isinstance(recorded, list | tuple) else ""
        one = listed.read(row, row + 1)
        found = reader.read(load_image.Request(row, one.paths[0], int(one.bytes[0]), member=one.members[0]))
        if before and found.sha256 and before != found.sha256:
            return one.paths[0]
    return ""
