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

import pydantic

from genenc_core import errors, spec
from genenc_core.encoding import tile_plan
from genenc_core.encoding.cells import Cells
from genenc_core.export.execution import Execution
from genenc_core.images import manifest
from genenc_core.images.point_scale import PointsScale
from genenc_core.run import identity, records
from genenc_core.run import parameters as run_parameters
from genenc_core.store import beneath, local, places, run_store
from genenc_core.store.objects import Objects, Root, join, open_objects

MANIFEST = "images.parquet"
MODEL_SPEC = "model_spec.json"
MODEL_FOLDER = "model"
PARAMETERS = "provenance/parameters.json"
FAILED = "provenance/failed"
CELLS = "cells"
"""The entry of a run's identity that says where the cells of maps lie; runs of genenc 0.1.0 have none."""
POINTS_SCALE = "points_scale"
"""The entry of a run's identity that says what labelled coordinates were multiplied by; absent: they were pixels."""


def is_earlier_run(root: Root) -> bool:
    """Return whether a run of genenc 0.1.0 is there, which goes on to mean what it meant.

    Raises:
        StoreError: the folder cannot be read, or the run in it is damaged.
    """
    return run_store.RunStore.exists(root) and CELLS not in run_store.RunStore.open(root).plan.identity


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
            raise errors.InputError(f"{self.root!r} is not a run folder: {_what_instead(self.objects)}")
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
            # What loads them opens them by path.
            with run_store.read_errors(self.root):
                if self.objects.kind(MODEL_FOLDER):
                    self.objects.refuse_specials(MODEL_FOLDER)
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

    @functools.cached_property
    def cache(self) -> local.LocalObjects | None:
        """Where what only reads the run may note something: never in the run, which may be somebody else's."""
        try:
            return local.LocalObjects(_user_cache(f"{os.path.realpath(self.root)}\0{self.store.document}"))
        except RuntimeError:  # a user without a home
            return None

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
    def points_scale(self) -> PointsScale:
        """What the coordinates of the points file were multiplied by."""
        return PointsScale.parse(self.identity.get(POINTS_SCALE))

    @property
    def tiles(self) -> tile_plan.TilePlan | None:
        """How the run's canvas is cut into tiles of the model's input size; None when it is not."""
        stored = self.identity.get("tiles")
        if stored is None:
            return None
        size, (height, width) = self.preprocessing, stored["size"]
        options = {key: stored[key] for key in ("overlap", "trim", "blend")}
        return tile_plan.TilePlan(canvas=(size.height, size.width), tile=(height, width), **options)

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
        try:
            found = records.read_json(self.objects, key) if self.objects.size(key) is not None else {}
        except errors.StoreError as error:  # it says why an attempt failed, no more
            return f"its reason is not known: {error}"
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
    except errors.UnsafeFileError as error:
        raise errors.StoreError(error.sentence) from error
    except OSError as error:
        raise errors.StoreError(
            f"cannot read {join(objects.name, key)!r}: {error.strerror}; the run folder is damaged"
        ) from error


def _what_instead(objects: Objects) -> str:
    """Return what to give in place of something that is no run: the run that it is a part of."""
    if isinstance(objects, local.LocalObjects):
        above = next(
            (folder for folder in objects.root.absolute().parents if (folder / places.STORE_FILE).exists()), None
        )
        if above is not None:
            return f"it is a part of the run {str(above)!r}, so give that"
    return "name a folder that was given as --out"


def _is_run(objects: Objects) -> bool:
    """Return whether there is anything of a run; what is wrong with it is told when it is opened."""
    if isinstance(objects, local.LocalObjects):
        try:
            return objects.kind(places.TRANSACTIONS) not in (None, beneath.FILE)
        except OSError:
            return False
    try:
        objects.read(places.STORE_FILE)  # the answer to a HEAD does not say when it is the bucket that is missing
        return True
    except FileNotFoundError:
        return False
    except OSError as error:
        raise errors.InputError(f"{objects.name!r} cannot be reached: {error.strerror or error}") from error


def _user_cache(name: str) -> Path:
    """Return the folder in the user's cache that belongs to a run."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    folder = Path(cache) if os.path.isabs(cache) else Path.home() / ".cache"  # noqa: PTH117
    return folder / "genenc" / hashlib.sha256(os.fsencode(name)).hexdigest()[:16]


def _manifest(objects: Objects) -> manifest.Manifest:
    opener = functools.partial(objects.open, MANIFEST)
    return manifest.Manifest.open(Path(join(objects.name, MANIFEST)), opener=opener)


def _failure_key(shard: int) -> str:
    return f"{FAILED}/s{shard:07d}.json"


def _parameters(stored: dict[str, object]) -> run_parameters.ExtractParameters:
    """Return the parameters a run was made with, as far as this version knows them."""
    known = run_parameters.ExtractParameters.model_fields
    try:
        return run_parameters.ExtractParameters.model_validate({key: stored[key] for key in stored if key in known})
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise errors.StoreError(
            f"{PARAMETERS!r} of the run does not hold the parameters of an extraction ({where}: {first['msg']}): the "
            "run folder is damaged, or made by a later version of genenc"
        ) from error
