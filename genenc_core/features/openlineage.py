"""The sessions of a run as OpenLineage events: what was read, what was written, how much of it.

Two events for each session, as the specification asks: its start, and how it ended. Nothing is sent: a file with an
event a line is what OpenLineage's own clients write.
"""

import json
import re
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from genenc_core import stored_arrays, text
from genenc_core.features.history import History, Session
from genenc_core.run.folder import RunFolder
from genenc_core.store import store_keys
from genenc_core.store.backends.objects import is_remote, join
from genenc_core.system import digests

FILE: Final = "openlineage.jsonl"
NAMESPACE: Final = "genenc"
_SPEC: Final = "https://openlineage.io/spec"
_EVENT: Final = f"{_SPEC}/2-0-2/OpenLineage.json#/$defs/RunEvent"
_FACETS: Final = {
    "schema": "1-2-0/SchemaDatasetFacet",
    "version": "1-0-1/DatasetVersionDatasetFacet",
    "documentation": "1-1-0/DocumentationDatasetFacet",
    "datasetType": "1-0-1/DatasetTypeDatasetFacet",
    "dataQualityMetrics": "1-0-1/DataQualityMetricsDatasetFacet",
    "outputStatistics": "1-0-2/OutputStatisticsOutputDatasetFacet",
    "inputStatistics": "1-0-0/InputStatisticsInputDatasetFacet",
    "jobType": "2-0-4/JobTypeJobFacet",
    "processing_engine": "1-1-1/ProcessingEngineRunFacet",
    "executionParameters": "1-0-0/ExecutionParametersRunFacet",
    "errorMessage": "1-0-1/ErrorMessageRunFacet",
}
_ENDS: Final = {"completed": "COMPLETE", "failed": "FAIL", "cancelled": "ABORT"}
_ADDRESS: Final = re.compile(r"([a-z][a-z0-9+.-]*://[^/]+)/*(.*)")
Document = dict[str, Any]


def lines(history: History) -> bytes:
    """Return the events of a run, one a line."""
    found = (json.dumps(event, ensure_ascii=False) for event in events(history))
    return b"".join(line.encode(errors="backslashreplace") + b"\n" for line in found)


def events(history: History) -> Iterator[Document]:
    """Yield the start of each session, and how it ended if it did."""
    for session in history.sessions:
        common = {
            "run": {"runId": run_id(history.run, session), "facets": _of_session(session)},
            "job": _job(history.run, session),
            "inputs": [_images(history), _model(history.run)],
            "outputs": [_features(history, session)],
            "producer": _producer(session),
            "schemaURL": _EVENT,
        }
        started, ended = session.time("started"), session.time("ended")
        if started:
            yield {"eventType": "START", "eventTime": started, **common}
        if ended and session.state in _ENDS:
            yield {"eventType": _ENDS[session.state], "eventTime": ended, **common}


def run_id(run: RunFolder, session: Session) -> str:
    """Return the UUID of a session, the same each time."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"{run.store.document} {session.name}"))


def _producer(session: Session) -> str:
    """Return what made the event as a package URL, which is a URI without a host."""
    return f"pkg:generic/genenc@{session.environment.get('genenc') or 'unknown'}"


def _facet(name: str, producer: str, /, **fields: Any) -> dict[str, Document]:
    version, kind = _FACETS[name].split("/")
    url = f"{_SPEC}/facets/{version}/{kind}.json#/$defs/{kind}"
    return {name: {"_producer": producer, "_schemaURL": url, **fields}}


def _of_session(session: Session) -> Document:
    producer = _producer(session)
    options = session.record.get("options")
    given = options if isinstance(options, Mapping) else {}
    parameters = [
        {"key": str(name), "value": value if isinstance(value, str) else digests.canonical_json(value)}
        for name, value in given.items()
        if value not in (None, False, "") and name != "session"
    ]
    version = str(session.environment.get("genenc") or "unknown")
    found = _facet("processing_engine", producer, name="genenc", version=version)
    if parameters:
        found |= _facet("executionParameters", producer, parameters=parameters)
    if session.state in ("failed", "cancelled"):
        reason = str(session.record.get("reason") or session.state)
        found |= _facet("errorMessage", producer, message=reason, programmingLanguage="Python")
    return found


def _job(run: RunFolder, session: Session) -> Document:
    facet = _facet("jobType", _producer(session), processingType="BATCH", integration="GENENC", jobType="COMMAND")
    return {"namespace": NAMESPACE, "name": f"{session.command}.{run.title}", "facets": facet}


def _dataset(place: str, facets: Document) -> Document:
    """Return a dataset by the specification's names: the scheme and authority, and the path below it."""
    address = _ADDRESS.match(place)
    namespace, name = (address[1], address[2] or "/") if address else ("file", str(Path(place).absolute()))
    return {"namespace": namespace, "name": name, "facets": facets}


def _images(history: History) -> Document:
    run, listed = history.run, history.run.manifest
    producer = _made_by(history)
    place = text.redacted(run.given.images if "://" in run.given.images else str(listed.root))
    fields = [{"name": name, "type": "string"} for name in ("image_id", "path")]
    fields += [{"name": f"{point}.{axis}", "type": "float64"} for point in listed.point_names for axis in "xy"]
    fields += [{"name": column, "type": "string"} for column in listed.columns]
    facets = _facet("version", producer, datasetVersion=f"sha256:{listed.digest}")
    facets |= _facet("schema", producer, fields=fields) | _facet("datasetType", producer, datasetType="FILE")
    words = f"{text.plural(listed.rows, 'image')} of {text.redacted(run.given.images)}"
    facets |= _facet("documentation", producer, description=words)
    read = _facet("inputStatistics", producer, rowCount=listed.rows, fileCount=listed.rows)
    return {**_dataset(place, facets), "inputFacets": read}


def _model(run: RunFolder) -> Document:
    producer = "pkg:generic/genenc"
    version = run.identity.get("weights") or run.identity.get("artifact") or run.store.plan.fingerprint
    facets = _facet("version", producer, datasetVersion=f"sha256:{version}")
    facets |= _facet("datasetType", producer, datasetType="MODEL")
    facets |= _facet("documentation", producer, description=f"run by {run.backend}; {run.preprocessing.describe()}")
    return {"namespace": NAMESPACE, "name": str(run.identity["model"]), "facets": facets}


def _features(history: History, session: Session) -> Document:
    run, producer = history.run, _made_by(history)
    fields = [
        {
            "name": array.name,
            "type": f"{array.dtype}[{', '.join(map(str, array.shape[1:]))}]" if array.shape[1:] else array.dtype,
            "description": str(array.attributes.get("description") or array.attributes.get("long_name", "")),
        }
        for array in run.store.plan.arrays
    ]
    facets = _facet("version", producer, datasetVersion=f"sha256:{run.store.plan.fingerprint}")
    facets |= _facet("schema", producer, fields=fields) | _facet("datasetType", producer, datasetType="FILE")
    ok, unreadable = (history.counts.get(name, 0) for name in ("ok", "unreadable"))
    products = [str(each).partition("=")[0] for each in run.identity["products"]]
    per_image = {array.name for array in run.store.plan.arrays if array.dims[0] != stored_arrays.REGION}
    metrics = {name: {"count": ok, "nullCount": unreadable} for name in products if name in per_image}
    objects = history.committed * len(run.store.plan.all_arrays)
    counted = {} if history.array_bytes is None else {"bytes": history.array_bytes}
    facets |= _facet(
        "dataQualityMetrics",
        producer,
        rowCount=ok + unreadable,
        fileCount=objects,
        columnMetrics=metrics,
        **counted,
    )
    place = run.root if is_remote(run.root) else str(Path(run.root).absolute())
    written = _facet("outputStatistics", producer, rowCount=session.stored.rows)
    return {**_dataset(join(place, store_keys.GROUP), facets), "outputFacets": written}


def _made_by(history: History) -> str:
    return _producer(history.sessions[-1]) if history.sessions else "pkg:generic/genenc"
