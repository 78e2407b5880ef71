"""Run folders on disk: identity, progress and failures; opening one loads no model."""

import contextlib
import functools
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pydantic

from genenc_core import errors, spec, stored_arrays, text
from genenc_core.encoding import tile_plan
from genenc_core.encoding.cells import Cells
from genenc_core.images.labels.scale import PointsScale
from genenc_core.images.sources import manifest
from genenc_core.images.sources.regions import Regions
from genenc_core.run import identity, records
from genenc_core.run import parameters as run_parameters
from genenc_core.runtime.execution import Execution
from genenc_core.store import run_store, store_keys
from genenc_core.store.backends import beneath, local
from genenc_core.store.backends.objects import Objects, Root, is_remote, join, open_objects, to_root
from genenc_core.system import digests, scratch

MANIFEST = "images.parquet"
REGIONS = "regions.parquet"
MODEL_SPEC = "model_spec.json"
MODEL_FOLDER = "model"
PARAMETERS = "provenance/parameters.json"
FAILED = "provenance/failed"
MOST_FAILED_IMAGES = 1000
"""Images recorded for a failed shard."""
DATASET = "dataset.json"
"""The document of a dataset, whose parts are runs."""
DOCUMENTS = frozenset(("ro-crate-metadata.json", "openlineage.jsonl"))
"""What `genenc export-provenance` writes beside the arrays of a run, or into a dataset; may be missing or replaced."""
CELLS = "cells"
"""Identity entry with the positions of map cells; runs of genenc 0.1.0 have none."""
PROBED = "probed"
"""Identity entry of a probe set: the source whose stored outputs it was made from."""
POINTS_SCALE = "points_scale"
"""Identity entry with the factor applied to labelled coordinates; absent if they were pixels."""


def is_earlier_run(root: Root) -> bool:
    """Return whether `root` holds a run of genenc 0.1.0, whose semantics are kept.

    Raises:
        StoreError: the folder cannot be read, or the run in it is damaged.
    """
    return run_store.RunStore.exists(root) and CELLS not in run_store.RunStore.open(root).plan.identity


def dataset_of(root: Root) -> str | None:
    """Return the dataset that a run folder is a part of, whatever links lead to it; None if it is none."""
    places = [str(root).rstrip("/")] if is_remote(root) else [os.path.abspath(root), os.path.realpath(root)]  # noqa: PTH100
    for place in dict.fromkeys(places):
        folder, _, name = place.rpartition("/parts/")
        if folder and "/" not in name and open_objects(to_root(folder)).size(DATASET) is not None:
            return folder
    return None


class RunFolder:
    """An opened run folder, local or on S3.

    Raises:
        InputError: not a run folder.
        StoreError: damaged, or a file in it is not the one the run was made with.
    """

    def __init__(self, root: Root) -> None:
        self.objects: Objects = open_objects(root)
        self.root = self.objects.name
        if not _is_run(self.objects):
            raise errors.InputError(f"{self.root!r} is not a run folder: {_not_a_run_hint(self.objects)}")
        self.store = run_store.RunStore.open(self.objects)
        self.identity = self.store.plan.identity
        identity.check_identity(self.identity, subject=f"the identity of the run {self.root!r}")
        self.manifest = _manifest(self.objects)
        self._require(MANIFEST, self.manifest.digest, self.identity["images"]["digest"])
        self._require(MANIFEST, str(self.manifest.rows), str(self.store.plan.rows))
        self._require(MODEL_SPEC, file_digest(self.objects, MODEL_SPEC), self._recorded("model_spec_sha256"))
        self.given = _parameters(records.read_json(self.objects, PARAMETERS))
        self._copy: scratch.TemporaryFolder | None = None

    def __str__(self) -> str:
        return self.root

    @property
    def dataset(self) -> str | None:
        """The dataset that the run is a part of; None if it is none."""
        return dataset_of(self.root)

    @property
    def is_probe_set(self) -> bool:
        """Whether it was made from outputs that another run stores, by `genenc probe`."""
        return PROBED in self.identity

    @property
    def title(self) -> str:
        """Display name: the folder's."""
        return text.place(self.root)

    def __reduce__(self) -> tuple[type["RunFolder"], tuple[str]]:
        """Reopen the run when unpickled."""
        return type(self), (self.root,)

    def model_files(self) -> Path:
        """Return a local folder with `model_spec.json` and `model/`: the run's own, or a temporary copy of remote ones.

        Raises:
            StoreError: a file cannot be read.
        """
        if isinstance(self.objects, local.LocalObjects):
            # Model loaders open files by path.
            with run_store.read_errors(self.root):
                if self.objects.kind(MODEL_FOLDER):
                    self.objects.refuse_specials(MODEL_FOLDER)
            return self.objects.root
        if self._copy is None:
            copy = scratch.TemporaryFolder("model")
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
        """Backend that runs the model: eager, torchscript, exported_program, onnx or aotinductor."""
        return str(self.identity["backend"])

    @property
    def execution(self) -> Execution:
        """Precision and compilation of an eager model."""
        return Execution(**(self.identity.get("execution") or {}))

    @property
    def preprocessing(self) -> spec.Preprocessing:
        """The run's preprocessing, including the user's `fit`."""
        return spec.Preprocessing.model_validate_json(json.dumps(self.identity["preprocessing"]))

    @property
    def outputs(self) -> Mapping[str, object] | None:
        """The sketch of the model's outputs when the run was made; None if it was not recorded."""
        made = self.store.plan.attributes.get("genenc")
        found = made.get("outputs") if isinstance(made, Mapping) else None
        return found if isinstance(found, Mapping) else None

    @functools.cached_property
    def cache(self) -> local.LocalObjects | None:
        """The user's cache folder for this run; read-only commands never write into the run. None without a home."""
        try:
            return local.LocalObjects(_user_cache(f"{os.path.realpath(self.root)}\0{self.store.document}"))
        except RuntimeError:  # no home folder
            return None

    @property
    def cells(self) -> dict[str, Cells]:
        """Positions of map cells by slot; cells of slots not listed divide the model input evenly."""
        return {name: Cells.from_json(stored) for name, stored in (self.identity.get(CELLS) or {}).items()}

    @property
    def point_states(self) -> frozenset[int]:
        """The valid values of the run's `point_status`."""
        array = next((array for array in self.store.plan.arrays if array.name == stored_arrays.POINT_STATUS), None)
        flags: Any = () if array is None else array.attributes["flag_values"]
        return frozenset(flags)

    @functools.cached_property
    def regions(self) -> Regions | None:
        """The regions of its images; None for a run without. Read whole when first asked for.

        Raises:
            StoreError: missing, damaged, or not the file that the run was made with.
        """
        recorded = self.identity["images"].get("regions")
        if recorded is None:
            return None
        opener = functools.partial(self.objects.open, REGIONS)
        found = Regions.open(Path(join(self.root, REGIONS)), rows=self.manifest.rows, opener=opener)
        self._require(REGIONS, found.digest, recorded)
        return found

    @property
    def region_count(self) -> int:
        """Regions per image, on average and rounded up; 0 for a run without."""
        return 0 if self.regions is None else self.regions.per_image(self.manifest.rows)

    @property
    def points_scale(self) -> PointsScale:
        """The factor applied to the coordinates of the points file."""
        return PointsScale.parse(self.identity.get(POINTS_SCALE))

    @property
    def tiles(self) -> tile_plan.TilePlan | None:
        """Plan that cuts the run's canvas into tiles of the model's input size; None if it is not tiled."""
        stored = self.identity.get("tiles")
        if stored is None:
            return None
        size, (height, width) = self.preprocessing, stored["size"]
        options = {key: stored[key] for key in ("overlap", "trim", "blend")}
        return tile_plan.TilePlan(canvas=(size.height, size.width), tile=(height, width), **options)

    def rows_of(self, shards: Sequence[int]) -> int:
        """Return the number of images in these shards."""
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
        """Return the reason of a shard's last failed attempt, marked if it was not in the session given."""
        try:
            found = self._failure_record(shard)
        except errors.StoreError as error:  # only informative
            return f"unknown reason: {error}"
        if not found:
            return "not attempted"
        others = session is not None and found.get("session") != session
        return f"{'in another session: ' if others else ''}{found.get('reason', '')}"

    def failed_in(self, shard: int, session: str) -> bool:
        """Return whether the last attempt at a shard failed in this session."""
        return self._failure_record(shard).get("session") == session

    def _failure_record(self, shard: int) -> dict[str, object]:
        """Return the record of a shard's last failed attempt; empty if there is none.

        Raises:
            StoreError: it is damaged.
        """
        key = failure_key(shard)
        try:
            return records.read_json(self.objects, key)
        except errors.StoreError:
            if self.objects.kind(key) is None:  # none, or removed by the process that committed the shard
                return {}
            raise

    def failure_note(self, shard: int) -> str:
        """Return the raw failure record of a shard, which differs between attempts; "" if there is none."""
        with contextlib.suppress(OSError):
            return self.objects.read(failure_key(shard)).decode(errors="replace")
        return ""

    def failed_images(self, shard: int) -> list[dict[str, Any]]:
        """Return the images that could not be read in a shard's last failed attempt: `row`, `image_id`, `reason`."""
        try:
            found = self._failure_record(shard).get("unreadable")
        except errors.StoreError:  # only informative
            return []
        kept = [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []
        return [{name: item.get(name, "") for name in ("row", "image_id", "reason")} for item in kept]

    def note_failure(self, shard: int, reason: str, session: str, images: Sequence[Mapping[str, Any]] = ()) -> None:
        """Record why an attempt at a shard failed; errors are ignored, so that a full disk does not hide the reason."""
        record = {"shard": shard, "reason": reason, "session": session, "time": records.now()}
        if images:
            record["unreadable"] = [dict(item) for item in images[:MOST_FAILED_IMAGES]]
        with contextlib.suppress(errors.StoreError):
            records.write_json(self.objects, failure_key(shard), record)

    def forget_failure(self, shard: int) -> None:
        """Remove the failure record of a shard that is committed."""
        with contextlib.suppress(OSError):
            self.objects.remove(failure_key(shard))

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
        return digests.MODEL_SPEC.hex(objects.read(key))
    except errors.UnsafeFileError as error:
        raise errors.StoreError(error.sentence) from error
    except OSError as error:
        raise errors.StoreError(
            f"cannot read {join(objects.name, key)!r}: {error.strerror}; the run folder is damaged"
        ) from error


def _not_a_run_hint(objects: Objects) -> str:
    """Return a hint for a folder that is not a run: the run that it is part of, if any."""
    if isinstance(objects, local.LocalObjects):
        above = next(
            (folder for folder in objects.root.absolute().parents if (folder / store_keys.STORE_FILE).exists()), None
        )
        if above is not None:
            return f"it is part of the run {str(above)!r}; give that folder"
    return "give a folder that was created with --out"


def _is_run(objects: Objects) -> bool:
    """Return whether there are traces of a run; damage is reported when it is opened."""
    if isinstance(objects, local.LocalObjects):
        try:
            return objects.kind(store_keys.TRANSACTIONS) not in (None, beneath.FILE)
        except OSError:
            return False
    try:
        objects.read(store_keys.STORE_FILE)  # GET, because a HEAD response does not tell a missing bucket
        return True
    except FileNotFoundError:
        return False
    except OSError as error:
        raise errors.InputError(f"{objects.name!r} cannot be reached: {error.strerror or error}") from error


def _user_cache(name: str) -> Path:
    """Return the folder for a run in the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    folder = Path(cache) if os.path.isabs(cache) else Path.home() / ".cache"  # noqa: PTH117
    return folder / "genenc" / digests.CACHE.hex(os.fsencode(name))[:16]


def _manifest(objects: Objects) -> manifest.Manifest:
    opener = functools.partial(objects.open, MANIFEST)
    return manifest.Manifest.open(Path(join(objects.name, MANIFEST)), opener=opener)


def failure_key(shard: int) -> str:
    """Return the key of a shard's failure record."""
    return f"{FAILED}/s{shard:07d}.json"


def batch_size_key(device: str) -> str:
    """Return the key of the batch size record for a kind of device."""
    return f"provenance/batch_size-{device.partition(':')[0]}.json"


def _parameters(stored: dict[str, object]) -> run_parameters.ExtractParameters:
    """Return the parameters a run was made with, without entries unknown to this version."""
    known = run_parameters.ExtractParameters.model_fields
    try:
        return run_parameters.ExtractParameters.model_validate({key: stored[key] for key in stored if key in known})
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise errors.StoreError(
            f"{PARAMETERS!r} of the run does not hold extraction parameters ({where}: {first['msg']}): the "
            "run folder is damaged, or made by a later version of genenc"
        ) from error
