"""A run or version as an RO-Crate: files, model, parameters and actions as JSON-LD.

It follows RO-Crate 1.1 and Process Run Crate 0.5, one of the profiles of Workflow Run RO-Crate: an action for each
session. Nothing is in it that the records do not say.
"""

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote

from genenc_core import spec, text
from genenc_core.dataset import documents
from genenc_core.dataset.documents import Version
from genenc_core.dataset.folder import DatasetFolder
from genenc_core.features.history import History, Session
from genenc_core.features.parameters import Agent
from genenc_core.run import session_log
from genenc_core.run.folder import MANIFEST, MODEL_FOLDER, MODEL_SPEC, PARAMETERS, REGIONS, RunFolder
from genenc_core.run.parameters import ExtractParameters
from genenc_core.store import store_keys
from genenc_core.store.backends.objects import Objects
from genenc_core.system import digests

FILE: Final = "ro-crate-metadata.json"
CRATE: Final = "https://w3id.org/ro/crate/1.1"
PROFILE: Final = "https://w3id.org/ro/wfrun/process/0.5"
NO_LICENSE: Final = "No licence was stated: ask those who made the run before using it."
SPDX: Final = "https://spdx.org/licenses/"
Entity = dict[str, Any]
_STATES: Final = {
    "completed": "http://schema.org/CompletedActionStatus",
    "failed": "http://schema.org/FailedActionStatus",
    "cancelled": "http://schema.org/FailedActionStatus",
    "running": "http://schema.org/ActiveActionStatus",
}
_ABOUT: Final = {
    MANIFEST: "the rows: names and paths of the images, their sizes, times and points",
    REGIONS: "the regions of the images: boxes and masks",
    MODEL_SPEC: "the model: inputs, outputs, preprocessing, digest of its weights (RuntimeModelSpec)",
    PARAMETERS: "the parameters that the run was made with",
    "README.md": "what the run is, and how to load it",
    store_keys.STORE_FILE: "plan and identity of the run, with the sha256 of every file that it was created with",
    "provenance/source.json": "the stored maps that it was made from",
    "provenance/rerun.json": "the run that it is a repetition of",
}
_FORMATS: Final = {".json": "application/json", ".parquet": "application/vnd.apache.parquet", ".md": "text/markdown"}
_HOMES: Final = {
    "Python": "https://www.python.org/",
    "torch": "https://pytorch.org/",
    "torchvision": "https://pytorch.org/vision/",
    "timm": "https://huggingface.co/docs/timm/",
    "onnxruntime": "https://onnxruntime.ai/",
    "numpy": "https://numpy.org/",
    "pillow": "https://python-pillow.github.io/",
    "zarr": "https://zarr.dev/",
    "pyarrow": "https://arrow.apache.org/",
    "prefect": "https://www.prefect.io/",
}
"""The software that is named of an environment, whose record names all."""
_FOLDERS: Final = {
    store_keys.TRANSACTIONS: "one commit record per shard: attempt, session, digests of its objects and of the files "
    "of its images",
    "provenance": "parameters, sessions and environments",
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What no record says of a crate."""

    license: str | None
    """SPDX identifier, URL or words."""
    agent: Agent | None
    """Who made it."""


class Crate:
    """The entities of a crate, by their `@id`."""

    def __init__(self, root: Mapping[str, Any], terms: Terms) -> None:
        self.root: Entity = {"@id": "./", "@type": "Dataset", **root, "hasPart": [], "mentions": []}
        self.entities: dict[str, Entity] = {}
        self.terms = terms
        self._terms()

    def add(self, entity: Entity) -> Entity:
        """Add an entity unless there is one of its `@id`; return a reference to it."""
        self.entities.setdefault(entity["@id"], entity)
        return {"@id": entity["@id"]}

    def data(self, entity: Entity, parent: Entity | None = None) -> Entity:
        """Add a file or folder as a part of the root, or of another folder; return a reference to it."""
        reference = self.add(entity)
        parts = (self.root if parent is None else self.entities[parent["@id"]]).setdefault("hasPart", [])
        if reference not in parts:
            parts.append(reference)
        return reference

    def _terms(self) -> None:
        self.root["conformsTo"] = self.add(
            {"@id": PROFILE, "@type": "CreativeWork", "name": "Process Run Crate", "version": "0.5"}
        )
        given = self.terms.license
        self.root["license"] = NO_LICENSE if given is None else given
        if given is not None and (url := license_url(given)):
            name = url.rpartition("/")[2] if url.startswith(SPDX) else given
            self.root["license"] = self.add(
                {"@id": url, "@type": "CreativeWork", "name": name, "description": f"The licence {name}"}
            )
        if self.terms.agent is not None:
            self.root["author"] = self.agent()

    def agent(self) -> Entity:
        """Add the person; return a reference."""
        assert self.terms.agent is not None
        return self.add({"@id": self.terms.agent.url or "#agent", "@type": "Person", "name": self.terms.agent.name})

    def document(self) -> bytes:
        """Return the crate's JSON-LD, flattened."""
        descriptor = {
            "@id": FILE,
            "@type": "CreativeWork",
            "conformsTo": {"@id": CRATE},
            "about": {"@id": "./"},
        }
        graph = [descriptor, self.root, *self.entities.values()]
        context = [f"{CRATE}/context", {"sha256": "http://schema.org/sha256"}]
        found = {"@context": context, "@graph": [_compacted(each) for each in graph]}
        return (json.dumps(found, indent=2, ensure_ascii=False) + "\n").encode(errors="backslashreplace")


def _compacted(entity: Entity) -> Entity:
    """Return an entity without empty lists, and single values as they are."""
    known = {name: value for name, value in entity.items() if value != [] and value is not None}
    return {name: value[0] if isinstance(value, list) and len(value) == 1 else value for name, value in known.items()}


def license_url(given: str) -> str | None:
    """Return the address of a licence: an SPDX identifier's, or the one given; None for words."""
    if re.match(r"https?://[^\s]+$", given):
        return given
    try:
        from packaging import licenses

        found = licenses.canonicalize_license_expression(given)
    except (ImportError, ValueError):
        return None
    return f"{SPDX}{found}" if re.fullmatch(r"[A-Za-z0-9.+-]+", found) else None


def of_run(history: History, terms: Terms) -> bytes:
    """Return the crate of a run."""
    run = history.run
    crate = Crate(
        {
            "name": f"Image features of {run.identity['model']}",
            "description": _summary(history),
            "datePublished": history.last or "1970-01-01",
            "identifier": f"genenc:fingerprint:{run.store.plan.fingerprint}",
        },
        terms,
    )
    _Run(crate, history, "").add()
    return crate.document()


def of_version(opened: DatasetFolder, version: Version, histories: Sequence[History], terms: Terms) -> bytes:
    """Return the crate of a version of a dataset; `histories` are those of its parts."""
    counts = version.counts
    crate = Crate(
        {
            "name": f"Image features of {opened.meaning.identity.get('model')}, version {version.version}",
            "description": f"{text.plural(counts.get('rows', 0), 'image')} in "
            f"{text.plural(len(version.parts), 'part')} ({counts.get('unreadable', 0)} unreadable), one row each; the "
            f"version's document says which rows of the parts are current.",
            "datePublished": _made_at(version) or "1970-01-01",
            "version": str(version.version),
        },
        terms,
    )
    for key, about in (
        (documents.DATASET, "what all parts have in common: model, preprocessing, products"),
        (version.key, f"version {version.version}: its parts, digests of what they hold, counts"),
        *([] if version.changes is None else [(f"{documents.VERSIONS}/{version.changes.file}", "rows that changed")]),
    ):
        crate.data(_file(key, {"description": about, "contentSize": _size(opened.objects, key)}))
    for part, history in zip(version.parts, histories, strict=True):
        key = f"{documents.PARTS}/{part.name}/"
        _Run(crate, history, key, {"identifier": part.store, "description": _summary(history)}).add()
    return crate.document()


def _made_at(version: Version) -> str | None:
    found = version.made.get("time")
    return found if isinstance(found, str) else None


class _Run:
    """The entities of one run: the crate itself, or a part of a dataset."""

    def __init__(self, crate: Crate, history: History, prefix: str, about: Mapping[str, Any] | None = None) -> None:
        self.crate = crate
        self.history = history
        self.run: RunFolder = history.run
        self.prefix = prefix
        name = prefix.rstrip("/").rpartition("/")[2]
        self.tag = f"{name}-" if name else ""
        """Before the names of entities that differ between runs."""
        self.folder: Entity | None = None
        if prefix:
            self.folder = crate.data({"@id": prefix, "@type": "Dataset", "name": name, **(about or {})})

    def add(self) -> None:
        """Add all of the run."""
        arrays, files = self._arrays(), dict(self._files())
        images, model = self._images(files), self._model(files)
        inputs = [images, model, *(files[key] for key in (PARAMETERS, *_SOURCES) if key in files)]
        inputs += self._parameters()
        for session in self.history.sessions:
            self._action(session, inputs, arrays)

    def _data(self, key: str, about: Mapping[str, Any]) -> Entity:
        return self.crate.data(_file(f"{self.prefix}{key}", about), self.folder)

    def _folder(self, key: str, about: Mapping[str, Any]) -> Entity:
        return self.crate.data({"@id": _id(f"{self.prefix}{key}/"), "@type": "Dataset", **about}, self.folder)

    def _arrays(self) -> Entity:
        measured = [self._product(name) for name in self._products()]
        about = {
            "name": "arrays",
            "description": f"Zarr v3, one row per image: {', '.join(self._products())}, and what says which image, "
            f"point and state each row is; {text.size(self.history.array_bytes or 0)} in shards of "
            f"{self.run.store.plan.shard_rows} images.",
            "encodingFormat": "application/vnd+zarr",
            "variableMeasured": measured,
        }
        return self._folder(store_keys.GROUP, about)

    def _products(self) -> list[str]:
        return [str(each).partition("=")[0] for each in self.run.identity["products"]]

    def _product(self, name: str) -> Entity:
        plan = next(array for array in self.run.store.plan.arrays if array.name == name)
        words = plan.attributes.get("description") or plan.attributes.get("long_name") or name
        shape = " x ".join(map(str, plan.shape))
        return self.crate.add(
            {
                "@id": f"#{self.tag}{name}",
                "@type": "PropertyValue",
                "name": name,
                "description": f"{words} ({plan.dtype}, {shape}: {', '.join(plan.dims)})",
                "unitText": "1",
            }
        )

    def _files(self) -> Iterator[tuple[str, Entity]]:
        """Add the files beside the arrays; yield them by key."""
        recorded = dict(self.run.store.files)
        for key in (MANIFEST, MODEL_SPEC, PARAMETERS, "README.md", store_keys.STORE_FILE):
            if key not in recorded and (size := _size(self.run.objects, key)) is not None:
                yield key, self._data(key, {"contentSize": size, "description": _ABOUT[key]})
        for key, (count, sha256) in recorded.items():
            about = _ABOUT.get(key) or ("the model's weights or artifact" if key.startswith(MODEL_FOLDER) else key)
            yield key, self._data(key, {"contentSize": str(count), "sha256": sha256, "description": about})
        for name, about in _FOLDERS.items():
            self._folder(name, {"name": name, "description": about})

    def _images(self, files: Mapping[str, Entity]) -> Entity:
        listed = self.run.manifest
        points = f", with the points {', '.join(listed.point_names)}" if listed.point_names else ""
        return self.crate.add(
            {
                "@id": f"#{self.tag}images",
                "@type": "CreativeWork",
                "name": f"{text.plural(listed.rows, 'image')}",
                "description": f"{text.plural(listed.rows, 'image')} of {self.run.given.images}{points}: the rows of "
                f"{MANIFEST}; the sha256 of each image's file is in the commit record of its shard",
                "identifier": f"sha256:{listed.digest}",
                "hasPart": [files[key] for key in (MANIFEST, REGIONS) if key in files],
            }
        )

    def _model(self, files: Mapping[str, Entity]) -> Entity:
        identity = self.run.identity
        found = spec.RuntimeModelSpec.from_json(self.run.objects.read(MODEL_SPEC).decode())
        source = None if found.genenc is None else found.genenc.source
        weights = "of the artifact" if source is None else source.weights
        own = [files[key] for key in files if key == MODEL_SPEC or key.startswith(f"{MODEL_FOLDER}/")]
        return self.crate.add(
            {
                "@id": f"#{self.tag}model",
                "@type": "CreativeWork",
                "name": identity["model"],
                "version": weights,
                "description": f"{identity['model']}, weights {weights}, run by {self.run.backend}; images: "
                f"{self.run.preprocessing.describe()}",
                "identifier": [
                    self._value(f"{what}_sha256", identity[what])
                    for what in ("weights", "artifact")
                    if identity.get(what)
                ],
                "hasPart": own,
            }
        )

    def _value(self, name: str, value: Any, kind: str = "") -> Entity:
        plain = value if isinstance(value, str | int | float) else digests.canonical_json(value)
        return self.crate.add(
            {"@id": f"#{self.tag}{kind}{quote(name)}", "@type": "PropertyValue", "name": name, "value": plain}
        )

    def _parameters(self) -> list[Entity]:
        """Add the parameters that are not the defaults."""
        given = self.run.given.model_dump(mode="json")
        usual = {name: field.get_default(call_default_factory=True) for name, field in _FIELDS.items()}
        return [
            self._value(name, value, "parameter-")
            for name, value in given.items()
            if value not in (None, [], "") and value != _json(usual.get(name)) and name != "out"
        ]

    def _action(self, session: Session, inputs: Sequence[Entity], arrays: Entity) -> None:
        stored, state = session.stored, session.state
        words = "Stored nothing."
        if stored.shards:
            where = f" on {', '.join(sorted(stored.devices))}" if stored.devices else ""
            words = f"Stored {text.plural(stored.rows, 'image')} in {text.plural(stored.shards, 'shard')}{where}."
        action: Entity = {
            "@id": f"#{self.tag}{session.name}",
            "@type": "CreateAction",
            "name": f"genenc {session.command}",
            "description": f"Session {session.name}. {words}",
            "instrument": self._software(session),
            "object": [*inputs, *self._options(session)],
            "result": [arrays] if stored.shards else [],
            "subjectOf": [*self._records(session)],
        }
        times = {"startTime": session.time("started"), "endTime": session.time("ended")}
        action |= {name: value for name, value in times.items() if value}
        if state in _STATES:
            action["actionStatus"] = _STATES[state]
        if state in ("failed", "cancelled"):
            action["error"] = str(session.record.get("reason") or state)
        if self.crate.terms.agent is not None:
            action["agent"] = self.crate.agent()
        self.crate.root["mentions"].append(self.crate.add(action))

    def _options(self, session: Session) -> Iterator[Entity]:
        """Add how a session was executed, which does not change what the run means."""
        for name, value in _mapping(session.record.get("options")).items():
            if value not in (None, False, "") and name != "session":
                yield self._value(str(name), value, f"{session.name}-")

    def _records(self, session: Session) -> Iterator[Entity]:
        for there, key, about in (
            (session.record, session_log.record_key(session.name), f"record of the session {session.name}"),
            (session.environment, session_log.environment_key(session.environment_sha256), _ENVIRONMENT),
        ):
            if there:
                size = _size(self.run.objects, key)
                yield self._data(key, {"contentSize": size, "description": about})

    def _software(self, session: Session) -> Entity:
        found = session.environment
        code = _mapping(found.get("code"))
        version = str(found.get("genenc") or "")
        commit = f" (commit {code.get('git_commit')}{', modified' if code.get('git_dirty') else ''})"
        entity: Entity = {
            "@id": f"#genenc-{session.environment_sha256[:16] or 'unknown'}",
            "@type": "SoftwareApplication",
            "name": "genenc",
            "description": "Batch pipeline that turns image sets into features.",
            "softwareVersion": f"{version or 'unknown'}{commit if code.get('git_commit') else ''}",
        }
        if found:
            machine, torch = (_mapping(found.get(name)) for name in ("machine", "torch"))
            entity["operatingSystem"] = found.get("platform")
            entity["processorRequirements"] = ", ".join(f"{key} {value}" for key, value in machine.items())
            packages = {
                **_mapping(found.get("packages")),
                "Python": found.get("python"),
                "torch": torch.get("version"),
            }
            entity["softwareRequirements"] = [
                self._package(name, str(packages[name])) for name in _HOMES if packages.get(name)
            ]
        return self.crate.add(entity)

    def _package(self, name: str, version: str) -> Entity:
        about = {"@type": "SoftwareApplication", "name": name, "softwareVersion": version, "url": _HOMES[name]}
        return self.crate.add({"@id": "#" + quote(f"{name}-{version}"), **about})


_FIELDS = ExtractParameters.model_fields
_SOURCES: Final = ("provenance/source.json", "provenance/rerun.json")
_ENVIRONMENT: Final = "environment: machine, interpreter, all packages, torch and its devices"


def _mapping(value: Any) -> Mapping[str, Any]:
    """Return an entry of a record that is to be a mapping; {} for anything else."""
    return value if isinstance(value, Mapping) else {}


def _json(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _summary(history: History) -> str:
    run = history.run
    state = "" if history.complete else f" Not complete: {history.committed} of {run.store.shard_count} shards."
    made = " Made from stored maps of another run." if run.is_probe_set else ""
    unreadable = history.counts.get("unreadable", 0)
    return (
        f"{text.plural(run.manifest.rows, 'image')}, one row each ({unreadable} unreadable), encoded by "
        f"{run.identity['model']}.{state}{made}"
    )


def _file(key: str, about: Mapping[str, Any]) -> Entity:
    suffix = f".{key.rpartition('.')[2]}"
    kind = {"encodingFormat": _FORMATS[suffix]} if suffix in _FORMATS else {}
    known = {name: value for name, value in about.items() if value is not None}
    return {"@id": _id(key), "@type": "File", "name": key.rpartition("/")[2], **kind, **known}


def _id(key: str) -> str:
    return quote(key)


def _size(objects: Objects, key: str) -> str | None:
    found = objects.size(key)
    return None if found is None else str(found)
