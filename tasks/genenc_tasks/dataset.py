"""Dataset tasks: compare the images, plan a part, make a version, report."""

from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from genenc_core import text
from genenc_core.dataset import summary, update
from genenc_core.run.folder import RunFolder
from genenc_tasks import reporting
from genenc_tasks.names import named
from genenc_tasks.stopping import cancellable


@task(task_run_name=named("compare images with {work}"), cache_policy=NO_CACHE)
@cancellable
def compare_images(work: update.Update) -> None:
    """Resolve the model, list the images and compare them with the dataset's newest version."""
    update.Update.prepare(work)


@task(task_run_name=named("plan a part of {work}"), cache_policy=NO_CACHE)
@cancellable
def plan_part(work: update.Update) -> RunFolder | None:
    """Return the part to encode next, None if nothing is left."""
    return update.Update.next_part(work)


@task(task_run_name=named("make a version of {work}"), cache_policy=NO_CACHE)
def make_version(work: update.Update, run: RunFolder | None) -> None:
    """Make a version with the committed rows of a part, or of what vanished or was renamed."""
    update.Update.make_version(work, run)


@task(task_run_name=named("report {work}"), cache_policy=NO_CACHE)
def report_dataset(work: update.Update, done: update.Updated) -> None:
    """Show what the update did."""
    lines = [text.markdown(line) for line in summary.lines(done)]
    with reporting.best_effort("the summary cannot be shown"):
        create_markdown_artifact(
            "\n\n".join(lines),
            key=reporting.key("dataset", done.folder.root),
            description=f"Dataset {text.markdown(str(work))}",
        )
