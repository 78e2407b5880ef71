"""What a session read and wrote, as artifacts: OpenLineage's producer for Prefect reads data sets from tables.

It takes the first row of a table whose description contains `ol-dataset` and ends with `_input` or `_output`.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import quote

from prefect.artifacts import create_markdown_artifact, create_table_artifact

from genenc_core import text
from genenc_core.features import history, openlineage
from genenc_core.run import records
from genenc_core.run.folder import RunFolder

Key = Callable[[str], str]
"""Returns the key of an artifact of a kind."""


def publish(
    run: RunFolder, found: records.RunStatus, session: str, reports: Sequence[records.ShardReport], key: Key
) -> None:
    """Publish the data sets of a session as tables, and its events as they may be sent."""
    done = [report for report in reports if not report.skipped and not report.held]
    stored = history.Stored(shards=len(done), rows=sum(report.rows for report in done))
    told = history.of_session(run, session, stored, found)
    events = list(openlineage.events(told))
    if not events:  # its record cannot be read
        return
    last = events[-1]
    for kind, direction, dataset in (
        *zip(("images", "model"), ("input", "input"), last["inputs"], strict=True),
        ("features", "output", last["outputs"][0]),
    ):
        create_table_artifact(
            table=[_row(dataset)], key=key(f"lineage-{kind}"), description=f"{kind}: ol-dataset_{direction}"
        )
    lines = "\n".join(json.dumps(event, ensure_ascii=False) for event in events)
    create_markdown_artifact(
        text.code_block(lines, "json"), key=key("openlineage"), description="OpenLineage events of the session"
    )


def _row(dataset: dict[str, Any]) -> dict[str, str | int]:
    """Return a data set as a table row, of text and numbers alone."""
    counted = {**dataset.get("inputFacets", {}), **dataset.get("outputFacets", {})}
    rows = [facet["rowCount"] for facet in counted.values() if "rowCount" in facet]
    version = dataset["facets"]["version"]["datasetVersion"]
    return {
        "database_uri": _plain(dataset["namespace"]),
        "table": _plain(dataset["name"]),
        "version": version,
        **({"rows": rows[0]} if rows else {}),
    }


def _plain(name: str) -> str:
    """Return a name with the characters of markup percent-encoded; escapes of Markdown would make it another name."""
    return "".join(
        char if char.isprintable() and char not in _MARKUP else quote(char, errors="backslashreplace") for char in name
    )


_MARKUP = frozenset("<>[]()`|\\!*\"'&#")
