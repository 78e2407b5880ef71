"""Everything that is recorded of one row: file, transform, model, artifact, shard, attempt, session, versions.

Only records are read, and the row's state, sizes and points; what no record says is listed as not known.
"""

import dataclasses
import datetime
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from genenc_core import errors, float_values, spec, statuses, stored_arrays
from genenc_core.features import execution
from genenc_core.features.parameters import TraceParameters
from genenc_core.images.sources import folders, manifest_rows
from genenc_core.images.sources import regions as region_rows
from genenc_core.run import precision, probe_source, records, session_log
from genenc_core.run.folder import MODEL_SPEC, PROBED, RunFolder, file_digest
from genenc_core.store import commit_record, store_keys
from genenc_core.store.backends.objects import is_remote
from genenc_core.store.commit_record import CommitRecord
from genenc_core.stored import rows as stored_rows
from genenc_core.stored.rows import Origin, Stored

Section = dict[str, Any]
_WIDTH = 16


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """What is recorded of one row, by subject."""

    image: Section
    """Name, row, file, its size, time and sha256, and what became of the file."""
    state: Section
    """State of the row and why, size of the image, points."""
    transform: Section
    """From the pixels of the file to those that the model sees."""
    model: Section
    """Name, weights, artifact, code, precision."""
    products: dict[str, Section]
    """What is stored of the row, by product, with the digests of the object that holds it."""
    commit: Section
    """Run, shard, attempt, device, batches."""
    session: Section
    """The session that encoded it: command, times, options."""
    versions: Section
    """Of genenc, Python, torch, the machine."""
    dataset: Section
    """Version and part, of a dataset; else empty."""
    probed: tuple[Section, ...]
    """Where the maps of a probe set come from; else empty."""
    not_known: tuple[str, ...]
    """What no record says."""

    def as_json(self) -> dict[str, Any]:
        """Return all of it as JSON data."""
        return dataclasses.asdict(self)

    def lines(self) -> list[str]:
        """Return all of it as text, subject by subject."""
        found: list[str] = []
        for name in ("image", "state", "dataset", "transform", "model", "commit", "session", "versions"):
            section: Section = getattr(self, name)
            if section:
                found += [name, *(line for key, value in section.items() for line in _lines(key, value))]
        found += ["stored", *(line for name, item in self.products.items() for line in _lines(name, _stored(item)))]
        for item in self.probed:
            found += ["probed", *(line for key, value in item.items() for line in _lines(key, value))]
        return found + (["not known", *(f"  {words}" for words in self.not_known)] if self.not_known else [])


def trace(given: TraceParameters) -> Trace:
    """Return what is recorded of one row.

    Raises:
        InputError: not a run or dataset, or there is no such image.
        StoreError: a record is damaged.
    """
    stored = stored_rows.open_rows(given.source, given.version)
    position = stored.find(given.image)
    return _Row(stored, position).trace()


class _Row:
    def __init__(self, stored: Stored, position: int) -> None:
        self.stored = stored
        self.position = position
        self.origin: Origin = stored.origin(position)
        self.run: RunFolder = self.origin.run
        self.row = self.origin.row
        self.shard = self.row // self.run.store.plan.shard_rows
        self.history: Sequence[CommitRecord] = self.run.store.history(self.shard)
        self.unknown: list[str] = []

    def trace(self) -> Trace:
        """Return what is recorded."""
        found = Trace(
            image=self.image(),
            state=self.state(),
            transform=self.transform(),
            model=self.model(),
            products=self.products(),
            commit=self.commit(),
            session=self.session(),
            versions=self.versions(),
            dataset=self.dataset(),
            probed=tuple(self.probed()),
            not_known=(),
        )
        return dataclasses.replace(found, not_known=tuple(dict.fromkeys(self.unknown)))

    @property
    def record(self) -> CommitRecord | None:
        """The shard's record."""
        return self.history[-1] if self.history else None

    @property
    def made_by(self) -> CommitRecord | None:
        """The record that stored the row as it is: the first one, or the one that healed it."""
        if not self.history:
            return None
        made, *later = self.history
        for record in later:
            if self._reason(made) is not None and self._reason(record) is None:
                made = record
        return made

    def image(self) -> Section:
        """Return what names the image and its file."""
        listed = self.run.manifest.read(self.row, self.row + 1)
        now = self.stored.images
        size, changed = int(now.bytes[self.position]), int(now.mtime_ns[self.position])
        digest = "" if self.record is None else stored_rows.digests_of(self.record)[self.row - self.record.rows[0]]
        if self.record is not None and not digest:
            self.unknown.append("the sha256 of the image's file: it is not in the commit record")
        found: Section = {
            "image_id": self.stored.image_id(self.position),
            "place": self.stored.place,
            "row": self.position,
            "path": listed.paths[0],
        }
        path = listed.paths[0]
        if self.stored.version is not None and (name := now.text("path", [self.position])[0]) != self._listed_path():
            path = os.path.join(self.run.manifest.root, folders.to_path(name))  # noqa: PTH118 -- may be absolute
            found["renamed_to"] = path
        if listed.members[0]:
            found["member"] = listed.members[0]
        found |= {"bytes": size, "modified": _time(changed), "sha256": digest or None}
        found["file_now"] = _file_now(path, size, changed)
        return found | {f"column {name}": value for name, value in self._columns().items()}

    def _columns(self) -> dict[str, str]:
        row = self._listed([manifest_rows.COLUMN + name for name in self.run.manifest.columns])
        return {name.removeprefix(manifest_rows.COLUMN): value for name, value in row.items()}

    def _listed_path(self) -> str:
        return self._listed(["path"])["path"]

    def _listed(self, columns: Sequence[str]) -> dict[str, str]:
        """Return the row's texts in columns of the manifest."""
        start = 0
        for block in self.run.manifest.iter_columns(columns) if columns else ():
            if self.row < start + block.num_rows:
                return {name: str(value) for name, value in block.slice(self.row - start, 1).to_pylist()[0].items()}
            start += block.num_rows
        return {}

    def state(self) -> Section:
        """Return the row's state, and what was found of the image and its points."""
        value = int(self.stored.take(stored_arrays.STATUS, np.array([self.position]))[0])
        found: Section = {"status": next(each.name for each in statuses.ROWS if each.value == value)}
        if self.record is not None and (reason := self._reason(self.record)) is not None:
            found["reason"] = reason
        if value == statuses.NOT_WRITTEN:
            found["reason"] = self.run.failure(self.shard)
        if value == statuses.OK:
            found["width"], found["height"] = (int(self._value(f"image_{side}")) for side in ("width", "height"))
            found["orientation"] = int(self._value("image_orientation"))
        of = {"points": dict(self._points()), "regions": dict(self._regions())}
        return found | {name: items for name, items in of.items() if items}

    def _points(self) -> Iterator[tuple[str, Section]]:
        if not self.stored.points:
            return
        x, y = (self._value(name) for name in ("point_x", "point_y"))
        state = self._value(stored_arrays.POINT_STATUS)
        names = {each.value: each.name for each in statuses.POINTS}
        for at, name in enumerate(self.stored.points):
            yield name, {"x": float(x[at]), "y": float(y[at]), "status": names.get(int(state[at]), int(state[at]))}

    def _regions(self) -> Iterator[tuple[str, Section]]:
        """Yield the regions of the image: box, kind and class, place on the axis `region`, state."""
        regions = self.run.regions
        if regions is None:
            return
        plan = self.run.store.plan
        at = np.flatnonzero(regions.rows == self.row)
        places = region_rows.positions(regions, plan.rows, plan.shard_rows)[0][at]
        stored = self.run.store.values(self.shard, {stored_arrays.REGION_STATUS})
        states = None if stored is None else stored[1][stored_arrays.REGION_STATUS]
        names = {each.value: each.name for each in statuses.REGIONS}
        texts = {name: regions.texts(name) for name in ("name", "category", "individual", "kind")}
        own = [texts["name"][index] for index in at]
        for index, place in zip(at.tolist(), places.tolist(), strict=True):
            value = statuses.NOT_WRITTEN if states is None else int(states[place - self.shard * plan.region_places])
            said = {name: texts[name][index] for name in ("category", "individual") if texts[name][index]}
            box = [float(edge) for edge in regions.boxes[index]]
            name = texts["name"][index]
            yield (
                name if own.count(name) == 1 else f"{name}, place {place}",
                {texts["kind"][index]: box, **said, "place": place, "status": names.get(value, value)},
            )

    def _value(self, name: str) -> Any:
        return self.stored.take(name, np.array([self.position]))[0]

    def _reason(self, record: CommitRecord) -> str | None:
        failed = record.details.get("unreadable", ())
        return next((str(item["reason"]) for item in failed if item.get("row") == self.row), None)

    def transform(self) -> Section:
        """Return how the image became the model's input."""
        own = self.run
        found: Section = {"preprocessing": own.preprocessing.describe()}
        source = self._spec.genenc
        if source is not None and source.normalization is not None:
            found["normalization"] = source.normalization
        if own.tiles is not None:
            found["tiles"] = own.tiles.describe()
        if own.points_scale.text is not None:
            found["points_scale"] = own.points_scale.text
        if "image_affine" in self.stored.arrays:
            affine = self._value("image_affine")
            if np.isfinite(affine).all():
                found["affine"] = [float(each) for each in affine]
        return found

    @property
    def _spec(self) -> spec.RuntimeModelSpec:
        return spec.RuntimeModelSpec.from_json(self.run.objects.read(MODEL_SPEC).decode())

    def model(self) -> Section:
        """Return what computed the row."""
        identity, block = self.run.identity, self._spec.genenc
        source = None if block is None else block.source
        found: Section = {
            "name": identity["model"],
            "weights": "of the artifact" if source is None else source.weights,
            "weights_sha256": identity["weights"],
            "backend": self.run.backend,
            "artifact_sha256": identity["artifact"],
            "precision": precision.describe(self.run) or "float32",
            "spec": f"{MODEL_SPEC}, sha256 {file_digest(self.run.objects, MODEL_SPEC)}",
        }
        for name in ("code", "files", "layers", "arguments"):
            if identity.get(name):
                found[name] = identity[name]
        made = {key: digest for key, (_, digest) in self.run.store.files.items() if key.startswith("model/")}
        return found | ({"model_files": made} if made else {})

    def products(self) -> dict[str, Section]:
        """Return what is stored of the row."""
        texts = {str(each).partition("=")[0]: str(each) for each in self.run.identity["products"]}
        objects = {item.key.partition("/")[0]: item for item in (self.record.objects if self.record else ())}
        found: dict[str, Section] = {}
        planned = {array.name: array for array in self.run.store.plan.arrays}
        for name in filter(planned.__contains__, self.stored.products):
            array, item = planned[name], objects.get(name)
            beside = {each: _object(objects.get(each)) for each in float_values.beside(array.attributes).values()}
            found[name] = {
                "product": texts.get(name, name),
                "shape": list(array.shape[1:]),
                "dims": list(array.dims[1:]),
                "dtype": array.dtype,
                "of": array.dims[0],
                **_object(item),
                "content_digest": None if item is None else item.content_digest,
                **({"beside": beside} if beside else {}),
            }
        return found

    def commit(self) -> Section:
        """Return the shard and its attempts."""
        plan = self.run.store.plan
        start, stop = self.run.store.shard_range(self.shard)
        found: Section = {"run": self.run.root, "row_in_run": self.row, "shard": self.shard, "rows": [start, stop]}
        found["fingerprint"] = plan.fingerprint
        made = self.made_by
        if made is None:
            self.unknown.append("who encoded it and how: its shard is not committed")
            return found
        name = f"s{self.shard:07d}" + (f".r{made.generation}" if made.generation else "")
        found |= {"record": f"{store_keys.COMMITS}/{name}.json", "attempt": made.attempt}
        found |= {"started": made.details.get("started"), "device": execution.device(made) or None}
        found["batch_sizes"] = {str(size): count for size, count in execution.batch_sizes(made).items()}
        if len(self.history) > 1:
            found["attempts"] = [record.attempt for record in self.history]
        for key, words in (("started", "when its shard was encoded"), ("device", "the device that encoded it")):
            if found[key] is None:
                self.unknown.append(f"{words}: it is not in the commit record")
        further = made.details.get("further_frames", ())
        changed = [item for item in made.details.get("changed_since_planned", ()) if item.get("row") == self.row]
        found |= {"further_frames": "of its file, which are not stored"} if self.row in further else {}
        return found | ({"changed_since_planned": changed[0]} if changed else {})

    def session(self) -> Section:
        """Return the session that encoded the row."""
        session = "" if self.made_by is None else session_log.session_of(self.made_by)
        if not session:
            if self.made_by is not None:
                self.unknown.append("the session: its commit record names none")
            return {}
        found = self._read(session_log.record_key(session))
        if found is None or session_log.LOST in found:
            self.unknown.append(f"the session {session}: its record is missing, damaged or a placeholder")
            return {"session": session}
        kept = ("command", "started", "ended", "state", "environment_sha256")
        options = found.get("options")
        given = options.items() if isinstance(options, Mapping) else ()
        shown = {name: value for name, value in given if name != "session" and value not in (None, False)}
        return {"session": session, **{name: found.get(name) for name in kept}, "options": shown}

    def versions(self) -> Section:
        """Return what encoded it ran on."""
        made = self.made_by
        session = "" if made is None else session_log.session_of(made)
        digest = (
            str((self._read(session_log.record_key(session)) or {}).get("environment_sha256", "")) if session else ""
        )
        found = self._read(session_log.environment_key(digest)) if digest else None
        if found is None or session_log.LOST in found:
            if made is not None:
                self.unknown.append("versions and machine: the record of the environment is missing or damaged")
            return {}
        code, torch, machine = (found.get(name) or {} for name in ("code", "torch", "machine"))
        shown: Section = {"genenc": found.get("genenc"), "commit": _commit(code), "python": found.get("python")}
        shown |= {"platform": found.get("platform"), "machine": machine, "torch": torch}
        if not shown["commit"]:
            self.unknown.append("the commit of genenc: its code was no checkout")
        rest = {name: value for name, value in found.items() if name not in (*_SHOWN, "packages", "genenc")}
        packages = found.get("packages")
        known = packages if isinstance(packages, Mapping) else {}
        shown |= {"libraries": {name: known[name] for name in _LIBRARIES if name in known}}
        return {**shown, **rest, "packages": f"{len(known)}, in {session_log.environment_key(digest)}"}

    def _read(self, key: str) -> dict[str, Any] | None:
        try:
            return records.read_json(self.run.objects, key)
        except errors.StoreError:
            return None

    def dataset(self) -> Section:
        """Return where a version has the row."""
        if self.stored.version is None:
            return {}
        return {
            "version": self.stored.version,
            "part": self.origin.part,
            "row_in_part": self.row,
            **self.stored.made(),
        }

    def probed(self) -> Iterator[Section]:
        """Yield where the maps come from that a row of a probe set was made from."""
        if not self.run.is_probe_set:
            return
        source = probe_source.Source.of(self.run)
        yield {"slots": dict(self.run.identity[PROBED].get("slots", {})), "source": source.place}
        if self.record is None:
            return
        try:
            piece = next(iter(source.pieces(self.row, self.row + 1)))
            known = source.part(piece.part)
        except errors.GenencError as error:
            self.unknown.append(f"the row of the source: {error}")
            return
        yield {
            "run": known.root,
            "row_in_run": piece.rows.start,
            "shard": piece.shard,
            "objects_read": [dict(item) for item in self.record.details.get(probe_source.DETAILS, ())],
        }


_LIBRARIES = ("torchvision", "timm", "onnxruntime", "numpy", "pillow", "tifffile", "zarr", "prefect")
_SHOWN = ("code", "torch", "machine", "python", "platform")


def _commit(code: Mapping[str, Any]) -> str | None:
    if not code.get("git_commit"):
        return None
    return f"{code['git_commit']}{' (modified)' if code.get('git_dirty') else ''}"


def _time(ns: int) -> str | None:
    if ns < 0:
        return None
    return datetime.datetime.fromtimestamp(ns / 1e9, datetime.UTC).isoformat(timespec="milliseconds")


def _file_now(path: str, size: int, mtime_ns: int) -> str:
    if is_remote(path) or "://" in path:
        return "not looked at: it is not local"
    try:
        found = os.stat(path)  # noqa: PTH116
    except OSError as error:
        return f"not there ({error.strerror or error})"
    if (found.st_size, found.st_mtime_ns) == (size, mtime_ns):
        return "of the same size and time"
    return f"another size or time ({found.st_size} bytes, {_time(found.st_mtime_ns)})"


def _object(item: commit_record.ObjectRecord | None) -> Section:
    """Return which object of the shard holds an array's rows, its size and digest; None where none is committed."""
    return {
        "object": None if item is None else f"{store_keys.GROUP}/{item.key}",
        "bytes": None if item is None else item.size,
        "digest": None if item is None else item.digest,
    }


def _stored(item: Section) -> Sequence[str]:
    shape = " x ".join(map(str, item["shape"])) or "1"
    each = " per region" if item["of"] == stored_arrays.REGION else ""
    what = f"{item['product']}, {item['dtype']} {shape}{each}"
    if item["object"] is None:
        return [f"{what}, not committed"]
    objects = [(what, item), *item.get("beside", {}).items()]
    return [f"{name}, in {each['object']} ({each['bytes']} bytes, {each['digest']})" for name, each in objects]


def _lines(key: str, value: Any) -> Iterator[str]:
    label = f"  {key.replace('_', ' '):<{_WIDTH}} "
    if value is None or value == "":
        yield f"{label}-"
    elif isinstance(value, Mapping):
        items = [f"{name}: {_words(item)}" for name, item in value.items()] or ["-"]
        for at, item in enumerate(items):
            yield (label if not at else " " * len(label)) + item
    elif isinstance(value, list | tuple) and value and isinstance(value[0], Mapping | str):
        for at, item in enumerate(value):
            yield (label if not at else " " * len(label)) + _words(item)
    else:
        yield label + _words(value)


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_words(item)}" for name, item in value.items() if item not in (None, ""))
    if isinstance(value, list | tuple):
        return ", ".join(map(_words, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)
