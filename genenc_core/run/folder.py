"""A run folder as it stands on disk: what it means, what is done, what failed; opening it loads no model."""

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from genenc_core import errors, spec
from genenc_core.encoding import tile_plan
from genenc_core.images import manifest
from genenc_core.run import identity, records
from genenc_core.run import parameters as run_parameters
from genenc_core.store import run_store

MANIFEST = "images.parquet"
MODEL_SPEC = "model_spec.json"
MODEL_FOLDER = "model"
PARAMETERS = "provenance/parameters.json"
FAILED = "provenance/failed"


class RunFolder:
    """An opened run folder.

    Raises:
        InputError: not a run folder.
        StoreError: damaged, or a file in it is not the one the run was made with.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        if not (root / "_txn").is_dir():
            raise errors.InputError(f"{str(root)!r} is not a run folder: name a folder that was given as --out")
        self.store = run_store.RunStore.open(root)
        self.identity = self.store.plan.identity
        identity.check_identity(self.identity, subject=f"the identity of the run {str(root)!r}")
        self.manifest = manifest.Manifest.open(root / MANIFEST)
        self._require(MANIFEST, self.manifest.digest, self.identity["images"]["digest"])
        self._require(MANIFEST, str(self.manifest.rows), str(self.store.plan.rows))
        self._require(MODEL_SPEC, file_digest(root / MODEL_SPEC), self._recorded("model_spec_sha256"))
        self.given = _parameters(records.read_json(root / PARAMETERS))

    def _recorded(self, name: str) -> str:
        made = self.store.plan.attributes.get("genenc")
        return str(made.get(name)) if isinstance(made, Mapping) else ""

    @property
    def backend(self) -> str:
        """What runs the model: eager, torchscript or aotinductor."""
        return str(self.identity["backend"])

    @property
    def preprocessing(self) -> spec.Preprocessing:
        """The run's preprocessing, the user's `fit` included."""
        return spec.Preprocessing.model_validate_json(json.dumps(self.identity["preprocessing"]))

    @property
    def tiles(self) -> tile_plan.TilePlan | None:
        """How the run's canvas is cut into tiles of the model's input size; None when it is not."""
        stored = self.identity.get("tiles")
        if stored is None:
            return None
        size, (height, width) = self.preprocessing, stored["size"]
        options = {key: stored[key] for key in ("overlap", "trim", "blend")}
        return tile_plan.TilePlan(canvas=(size.height, size.width), tile=(height, width), **options)

    @classmethod
    def open_for_work(cls, root: Path) -> "RunFolder":
        """Open a run folder and finish what an earlier process committed but did not put in place."""
        folder = cls(root)
        folder.store.recover()
        return folder

    def rows_of(self, shards: Sequence[int]) -> int:
        """Return how many images these shards hold."""
        ranges = (self.store.shard_range(shard) for shard in shards)
        return sum(stop - start for start, stop in ranges)

    def failed(self) -> list[int]:
        """Return the uncommitted shards whose last attempt failed."""
        found = (self.root / FAILED).glob("s*.json")
        return sorted({int(path.stem[1:]) for path in found} - self.store.committed())

    def failure(self, shard: int, *, session: str | None = None) -> str:
        """Return the reason of a shard's last failed attempt (of this session, if named), or that there was none."""
        path = self._failure_file(shard)
        found = records.read_json(path) if path.exists() else {}
        if not found or (session is not None and found.get("session") != session):
            return "it was not reached"
        return str(found.get("reason", ""))

    def note_failure(self, shard: int, reason: str, session: str) -> None:
        """Record why an attempt at a shard failed; a full disk must not hide the reason itself."""
        record = {"shard": shard, "reason": reason, "session": session, "time": records.now()}
        with contextlib.suppress(errors.StoreError):
            records.write_json(self._failure_file(shard), record)

    def forget_failure(self, shard: int) -> None:
        """Remove a shard's failure record: it is committed."""
        with contextlib.suppress(OSError):
            self._failure_file(shard).unlink()

    def _failure_file(self, shard: int) -> Path:
        return self.root / FAILED / f"s{shard:07d}.json"

    def _require(self, name: str, found: str, recorded: str) -> None:
        if found != recorded:
            raise errors.StoreError(
                f"{str(self.root / name)!r} is not the file this run was made with (its digest differs): "
                "put the original back, or extract to another --out"
            )


def file_digest(path: Path) -> str:
    """Return the sha256 of a small file of the run folder.

    Raises:
        StoreError: it cannot be read.
    """
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise errors.StoreError(f"cannot read {str(path)!r}: {error.strerror}; the run folder is damaged") from error


def _parameters(stored: dict[str, object]) -> run_parameters.ExtractParameters:
    """Return the parameters a run was made with, as far as this version knows them."""
    known = run_parameters.ExtractParameters.model_fields
    return run_parameters.ExtractParameters.model_validate({key: stored[key] for key in stored if key in known})
