"""Task of reports: write the page, and show its main figures in the UI."""

from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from genenc_core import text
from genenc_core.report import broken, report_file
from genenc_core.report import report as reporting
from genenc_core.report.parameters import ReportParameters
from genenc_tasks.names import named
from genenc_tasks.reporting import best_effort, key


@task(task_run_name=named("report on {given.title}"), cache_policy=NO_CACHE)
def report(given: ReportParameters) -> reporting.Report:
    """Look at a run or dataset, write the page if `out` names a file, and show the main figures."""
    path = report_file.check(given) if given.out else None
    made = reporting.make(given)
    if path is not None:
        report_file.write(made.html, path)
    publish(made, given.out)
    return made


def publish(made: reporting.Report, file: str = "") -> None:
    """Show the main figures of a report, and where its page is; a failure of the server is logged, no more."""
    with best_effort("the report could not be shown"):
        words = markdown(made) + (f"\nThe page: {text.markdown(file)}\n" if file else "")
        create_markdown_artifact(words, key=key("results", made.place), description="What the run holds")


def markdown(made: reporting.Report) -> str:
    """Return the main figures as Markdown, with images as the model saw them."""
    said = "\n".join(f"- {text.markdown(line.strip())}" for line in made.lines())
    head = f"**{text.markdown(made.title)}**: {text.markdown(made.sample)}"
    if made.contact_sheet is None:
        return f"{head}\n\n{said}\n"
    return f"{head}\n\n{said}\n\n![images as the model sees them]({broken.url(made.contact_sheet, 'JPEG')})\n"
