"""What the Prefect UI shows of a run: a progress bar, the shards, the unreadable images and a summary.

All of it is best effort: what cannot be shown is logged, and changes nothing about the run.
"""

import contextlib
import logging
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

from genenc_core import pace, text
from genenc_core.run import records, status
from genenc_core.store import objects, places
from genenc_tasks.names import named

LOGGER = logging.getLogger(__name__)
MOST_ROWS = 200


@contextlib.contextmanager
def best_effort(what: str) -> Iterator[None]:
    """Log a failure to show something, in one line."""
    try:
        yield
    except Exception as error:  # the client raises whatever its network does
        LOGGER.warning("%s: %s: %s", what, type(error).__name__, str(error).partition("\n")[0])


def start_progress(root: str, done: int, shards: int) -> UUID | None:
    """Create the progress artifact of a run; None when it cannot be."""
    words = _words(root, done, shards)
    made: UUID | None = None
    with best_effort("the progress cannot be shown"):
        made = cast(UUID, create_progress_artifact(progress=_percent(done, shards), key="progress", description=words))
    return made  # noqa: RET504 (None after a failure)


def show_progress(artifact: UUID | None, root: str, done: int, shards: int, speed: pace.Pace | None = None) -> None:
    """Move the progress artifact, if there is one; `speed` is the pace of shards."""
    if artifact is None:
        return
    with best_effort("the progress cannot be shown"):
        update_progress_artifact(
            artifact, progress=_percent(done, shards), description=_words(root, done, shards, speed)
        )


@task(task_run_name=named("report {root}"), cache_policy=NO_CACHE)
def publish_report(root: str, reports: Sequence[records.ShardReport] = ()) -> records.RunStatus:
    """Write the tables of shards and of unreadable images and the summary to the UI; `reports` are this session's."""
    found = status.survey(root, most=MOST_ROWS)
    images = found.unreadable
    shards = shard_table(found, reports)
    with best_effort("the table of shards cannot be shown"):
        create_table_artifact(table=shards, key="shards", description="Shards, those not done first")
    if images:
        table = [{key: text.markdown(str(value)) for key, value in item.items()} for item in images]
        count = text.plural(found.status.unreadable, "unreadable image")
        with best_effort("the table of unreadable images cannot be shown"):
            create_table_artifact(table=table, key="failed-images", description=count)
    with best_effort("the summary cannot be shown"):
        create_markdown_artifact(summary(found), key="report", description="Where the run stands")
    return found.status


def shard_table(found: status.Survey, reports: Sequence[records.ShardReport] = ()) -> list[dict[str, object]]:
    """Return at most 200 shards as table rows: failed, then pending, then committed ones.

    Load, encode and reduce times come from the commit records; commit times of this session from its reports.
    """
    commits = {report.shard: report.seconds.get("commit", 0.0) for report in reports if not report.skipped}
    order = {"failed": 0, "pending": 1, "committed": 2}
    rows = sorted(found.shards, key=lambda row: (order[row.state], row.shard))
    return [
        {
            "shard": row.shard,
            "state": row.state,
            "rows": f"{row.start}-{row.stop - 1}",
            "failed images": row.unreadable,
            "images/s": "" if row.images_per_second is None else f"{row.images_per_second:.1f}",
            **{f"{stage} s": f"{seconds:.2f}" for stage, seconds in row.seconds.items()},
            "commit s": f"{commits[row.shard]:.2f}" if row.shard in commits else "",
            "reason": text.markdown(row.reason),
        }
        for row in rows[:MOST_ROWS]
    ]


def summary(found: status.Survey) -> str:
    """Return the run's summary as Markdown."""
    lines = [f"- {text.markdown(line)}" for line in status.summary_lines(found)]
    store = objects.join(found.status.root, places.GROUP)
    code = text.code_block(f"import xarray\nrun = xarray.open_zarr({store!r}, consolidated=False)", "python")
    return "\n".join([*lines, "", code, ""])


def _percent(done: int, shards: int) -> float:
    return 100.0 * done / max(shards, 1)


def _words(root: str, done: int, shards: int, speed: pace.Pace | None = None) -> str:
    left = None if speed is None or done >= shards else speed.seconds_for(shards - done)
    more = "" if left is None else f", about {pace.duration(left)} left"
    return f"{text.markdown(root)}: {done} of {shards} shards committed{more}"
