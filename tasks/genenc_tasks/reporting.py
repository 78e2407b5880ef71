"""Prefect artifacts of a run: progress, tables of shards and unreadable images, pictures, a summary, lineage.

Reporting is best effort: errors are logged and do not affect the run.
"""

import contextlib
import hashlib
import logging
import os
import re
from collections.abc import Iterator, Sequence
from typing import cast
from uuid import UUID

from prefect import task
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.cache_policies import NO_CACHE

from genenc_core import text
from genenc_core.run import records, status
from genenc_core.run.bound import Bound
from genenc_core.run.folder import RunFolder
from genenc_core.store import store_keys
from genenc_core.store.backends import objects
from genenc_core.system import progress_rate
from genenc_tasks import lineage, thumbnails, timeline
from genenc_tasks.names import named

LOGGER = logging.getLogger(__name__)
MOST_ROWS = 200


@contextlib.contextmanager
def best_effort(what: str) -> Iterator[None]:
    """Log an exception of the block in one line instead of raising it."""
    try:
        yield
    except Exception as error:  # the client may raise any network error
        LOGGER.warning("%s: %s: %s", what, type(error).__name__, str(error).partition("\n")[0])


def key(kind: str, place: str) -> str:
    """Return the key of an artifact, whose versions the UI lists: one for each kind, and run folder or dataset."""
    owner = place.rstrip("/") if objects.is_remote(place) else os.path.abspath(place)  # noqa: PTH100 (links stay)
    words = re.sub(r"[^a-z0-9]+", "-", text.place(owner).lower()).strip("-")[:40]
    return "-".join(filter(None, (kind, words, hashlib.sha256(owner.encode(errors="replace")).hexdigest()[:6])))


def start_progress(run: RunFolder, done: int, shards: int) -> UUID | None:
    """Create the progress artifact of a run; return None if that fails."""
    words = _words(run.root, done, shards)
    made: UUID | None = None
    with best_effort("the progress cannot be shown"):
        made = cast(
            UUID,
            create_progress_artifact(
                progress=_percent(done, shards), key=key("progress", run.dataset or run.root), description=words
            ),
        )
    return made  # noqa: RET504 (None after a failure)


def show_progress(
    artifact: UUID | None, root: str, done: int, shards: int, speed: progress_rate.Pace | None = None
) -> None:
    """Update the progress artifact, if any; `speed` is the pace of shards."""
    if artifact is None:
        return
    with best_effort("the progress cannot be shown"):
        update_progress_artifact(
            artifact, progress=_percent(done, shards), description=_words(root, done, shards, speed)
        )


@task(task_run_name=named("report {run.title}"), cache_policy=NO_CACHE)
def publish_report(run: RunFolder, reports: Sequence[records.ShardReport] = (), session: str = "") -> records.RunStatus:
    """Publish tables of shards and unreadable images, a summary, and what `session` read and wrote if it is named.

    `reports` are this session's.
    """
    found = status.survey(run, most=MOST_ROWS)
    images, owner = (*found.unreadable, *found.failed_images)[:MOST_ROWS], run.dataset or run.root
    shards = shard_table(found, reports)
    with best_effort("the table of shards cannot be shown"):
        create_table_artifact(table=shards, key=key("shards", owner), description="Shards, those not done first")
    if images:
        table = [{key: text.markdown(str(value)) for key, value in item.items()} for item in images]
        count = text.plural(found.status.unreadable, "unreadable image")
        if found.failed_images:
            count = f"{count}, and {len(found.failed_images)} for which shards failed"
        with best_effort("the table of unreadable images cannot be shown"):
            create_table_artifact(table=table, key=key("failed-images", owner), description=count)
        with best_effort("the thumbnails cannot be shown"):
            if drawn := thumbnails.markdown(run, images):
                create_markdown_artifact(drawn, key=key("failed-thumbnails", owner), description=count)
    with best_effort("the summary cannot be shown"):
        words = summary(found, records.bound_of(reports)) + timeline.markdown(reports)
        create_markdown_artifact(words, key=key("report", owner), description="Where the run stands")
    if session:
        with best_effort("the lineage cannot be shown"):
            lineage.publish(run, found.status, session, reports, lambda kind: key(kind, owner))
    return found.status


def shard_table(found: status.Survey, reports: Sequence[records.ShardReport] = ()) -> list[dict[str, object]]:
    """Return at most 200 shards as table rows, in the order damaged, failed, pending, committed.

    Load, encode and reduce times are from commit records, commit times from this session's reports.
    """
    commits = {report.shard: report.seconds.get("commit", 0.0) for report in reports if not report.skipped}
    order = {"damaged": 0, "failed": 1, "pending": 2, "committed": 3}
    rows = sorted(found.shards, key=lambda row: (order[row.state], row.shard))[:MOST_ROWS]
    # Prefect shows the columns of the first row, so each row has all.
    stages = dict.fromkeys(stage for row in rows for stage in row.seconds)
    return [
        {
            "shard": row.shard,
            "state": row.state,
            "rows": f"{row.start}-{row.stop - 1}",
            "failed images": row.unreadable if row.state == "committed" else "",
            "images/s": "" if row.images_per_second is None else f"{row.images_per_second:.1f}",
            **{f"{stage} s": f"{row.seconds[stage]:.2f}" if stage in row.seconds else "" for stage in stages},
            "commit s": f"{commits[row.shard]:.2f}" if row.shard in commits else "",
            "reason": text.markdown(row.reason),
        }
        for row in rows
    ]


def summary(found: status.Survey, limit: Bound | None) -> str:
    """Return the run's summary as Markdown; `limit` is the session's bottleneck."""
    lines = [f"- {text.markdown(line)}" for line in status.summary_lines(found, limit)]
    store = objects.join(found.status.root, store_keys.GROUP)
    opening = f"import xarray\nrun = xarray.open_zarr({store!r}, consolidated=False)"
    if found.status.quantized:  # values, not integers
        opening = f"from genenc_core import api\nrun = api.Run.open({found.status.root!r}).arrays()"
    code = text.code_block(opening, "python")
    return "\n".join([*lines, "", code, ""])


def _percent(done: int, shards: int) -> float:
    return 100.0 * done / max(shards, 1)


def _words(root: str, done: int, shards: int, speed: progress_rate.Pace | None = None) -> str:
    left = None if speed is None or done >= shards else speed.seconds_for(shards - done)
    more = "" if left is None else f", about {progress_rate.duration(left)} left"
    return f"{text.markdown(root)}: {done} of {shards} shards committed{more}"
