"""A run folder as it stands on disk: what it means, what is done, what failed; opening it loads no model."""

import contextlib
import functools
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from genenc_core import errors, spec
from genenc_core.encoding import tile_plan
from genenc_core.encoding.cells import Cells
from genenc_core.export.execution import Execution
from genenc_core.images import manifest
from genenc_core.run import identity, records
from genenc_core.run import parameters as run_parameters
from genenc_core.store import local, places, run_store
from genenc_core.store.objects import Objects, Root, join, open_objects

MANIFEST = "images.parquet"
MODEL_SPEC = "model_spec.json"
MODEL_FOLDER = "model"
PARAMETERS = "provenance/parameters.json"
FAILED = "provenance/failed"
CELLS = "cells"
"""The entry of a run's identity that says where the cells of maps lie; runs of genenc 0.1.0 have none."""


class RunFolder:
    """An opened run folder, here or on S3.

    Raises:
        InputError: not a run folder.
        StoreError: damaged, or a file in it is not the one the run was made with.
    """

    def __init__(self, root: Root) -> None:
        self.objects: Objects = open_objects(root)
        self.root = self.objects.name
        if not _is_run(self.objects):
            raise errors.InputError(f"{self.root!r} is not a run folder: name a folder that was given as --out")
        self.store = run_store.RunStore.open(self.objects)
        self.identity = self.store.plan.identity
        identity.check_identity(self.identity, subject=f"the identity of the run {self.root!r}")
        self.manifest = _manifest(self.objects)
        self._require(MANIFEST, self.manifest.digest, self.identity["images"]["digest"])
        self._require(MANIFEST, str(self.manifest.rows), str(self.store.plan.rows))
        self._require(MODEL_SPEC, file_digest(self.objects, MODEL_SPEC), self._recorded("model_spec_sha256"))
        self.given = _parameters(records.read_json(self.objects, PARAMETERS))
        self._copy: tempfile.TemporaryDirectory[str] | None = None

    def model_files(self) -> Path:
        """Return a local folder that holds `model_spec.json` and `model/`: the run's own, or a copy kept till the end.

        Raises:
            StoreError: a file cannot be read.
        """
        if isinstance(self.objects, local.LocalObjects):
            return self.objects.root
        if self._copy is None:
            copy = tempfile.TemporaryDirectory(prefix="genenc-model-")
            try:
                names = [f"{MODEL_FOLDER}/{name}" for name, _ in self.objects.walk(MODEL_FOLDER)]
                for key in (MODEL_SPEC, *names):
                    target = Path(copy.name) / key
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with self.objects.open(key) as source, target.open("xb") as file:
                        shutil.copyfileobj(source, file, length=2**23)
            except OSError as error:
                raise errors.StoreError(f"cannot copy the model of {self.root!r}: {error.strerror or error}") from error
            self._copy = copy
        return Path(self._copy.name)

    def _recorded(self, name: str) -> str:
        made = self.store.plan.attributes.get("genenc")
        return str(made.get(name)) if isinstance(made, Mapping) else ""

    @property
    def backend(self) -> str:
        """What runs the model: eager, torchscript, exported_program, onnx or aotinductor."""
        return str(self.identity["backend"])

    @property
    def execution(self) -> Execution:
        """How an eager model is computed."""
        return Execution(**(self.identity.get("execution") or {}))

    @property
    def preprocessing(self) -> spec.Preprocessing:
        """The run's preprocessing, the user's `fit` included."""
        return spec.Preprocessing.model_validate_json(json.dumps(self.identity["preprocessing"]))

    def local_folder(self, key: str) -> Path:
        """Return where notes of this machine's work on the run lie: in it, or for S3 in the user's cache."""
        if isinstance(self.objects, local.LocalObjects):
            return self.objects.path(key)
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        return cache / "genenc" / hashlib.sha256(self.root.encode()).hexdigest()[:16] / key

    @property
    def cells(self) -> dict[str, Cells]:
        """Where the cells of maps lie, by slot; those of others divide the model input evenly."""
        return {name: Cells.from_json(stored) for name, stored in (self.identity.get(CELLS) or {}).items()}

    @property
    def point_states(self) -> frozenset[int]:
        """The numbers that the run's `point_status` has a meaning for."""
        array = next((array for array in self.store.plan.arrays if array.name == "point_status"), None)
        flags: Any = () if array is None else array.attributes["flag_values"]
        return frozenset(flags)

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
    def open_for_work(cls, root: Root) -> "RunFolder":
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
        try:
            names = self.objects.names(FAILED, "s")
        except FileNotFoundError:
            return []
        found = (re.fullmatch(r"s(\d{7,})\.json", name) for name in names)
        return sorted({int(match[1]) for match in found if match} - self.store.committed())

    def failure(self, shard: int, *, session: str | None = None) -> str:
        """Return the reason of a shard's last failed attempt; it says so when that was not in the session named."""
        key = _failure_key(shard)
        found = records.read_json(self.objects, key) if self.objects.size(key) is not None else {}
        if not found:
            return "it was not reached"
        others = session is not None and found.get("session") != session
        return f"{'in another session: ' if others else ''}{found.get('reason', '')}"

    def failed_in(self, shard: int, session: str) -> bool:
        """Return whether the last attempt at a shard failed, in this session."""
        key = _failure_key(shard)
        return self.objects.size(key) is not None and records.read_json(self.objects, key).get("session") == session

    def failure_note(self, shard: int) -> str:
        """Return what tells one failed attempt at a shard from another, "" where there is none."""
        with contextlib.suppress(OSError):
            return self.objects.read(_failure_key(shard)).decode(errors="replace")
        return ""

    def note_failure(self, shard: int, reason: str, session: str) -> None:
        """Record why an attempt at a shard failed; a full disk must not hide the reason itself."""
        record = {"shard": shard, "reason": reason, "session": session, "time": records.now()}
        with contextlib.suppress(errors.StoreError):
            records.write_json(self.objects, _failure_key(shard), record)

    def forget_failure(self, shard: int) -> None:
        """Remove a shard's failure record: it is committed."""
        with contextlib.suppress(OSError):
            self.objects.remove(_failure_key(shard))

    def _require(self, name: str, found: str, recorded: str) -> None:
        if found != recorded:
            raise errors.StoreError(
                f"{join(self.root, name)!r} is not the file this run was made with (its digest differs): "
                "put the original back, or extract to another --out"
            )


def file_digest(objects: Objects, key: str) -> str:
    """Return the sha256 of a small file of the run folder.

    Raises:
        StoreError: it cannot be read.
    """
    try:
        return hashlib.sha256(objects.read(key)).hexdigest()
    except OSError as error:
        raise errors.StoreError(
            f"cannot read {join(objects.name, key)!r}: {error.strerror}; the run folder is damaged"
        ) from error


def _is_run(objects: Objects) -> bool:
    """Return whether there is anything of a run; what is wrong with it is told when it is opened."""
    if isinstance(objects, local.LocalObjects):
        return objects.path(places.TRANSACTIONS).is_dir()
    try:
        objects.read(places.STORE_FILE)  # the answer to a HEAD does not say when it is the bucket that is missing
        return True
    except FileNotFoundError:
        return False
    except OSError as error:
        raise errors.InputError(f"{objects.name!r} cannot be reached: {error.strerror or error}") from error


def _manifest(objects: Objects) -> manifest.Manifest:
    if isinstance(objects, local.LocalObjects):
        return manifest.Manifest.open(objects.path(MANIFEST))
    opener = functools.partial(objects.open, MANIFEST)
    return manifest.Manifest.open(Path(join(objects.name, MANIFEST)), opener=opener)


def _failure_key(shard: int) -> str:
    return f"{FAILED}/s{shard:07d}.json"


def _parameters(stored: dict[str, object]) -> run_parameters.ExtractParameters:
    """Return the parameters a run was made with, as far as this version knows them."""
    known = run_parameters.ExtractParameters.model_fields
    return run_parameters.ExtractParameters.model_validate({key: stored[key] for key in stored if key in known})
