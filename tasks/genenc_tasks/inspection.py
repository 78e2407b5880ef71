"""Inspection task: look at images and labels before a run, and show them in the UI."""

from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from genenc_core import text
from genenc_core.inspection import inspect as inspecting
from genenc_core.inspection.parameters import InspectParameters
from genenc_core.report import broken
from genenc_tasks.names import named
from genenc_tasks.reporting import best_effort


@task(task_run_name=named("inspect {given.title}"), cache_policy=NO_CACHE)
def inspect(given: InspectParameters) -> inspecting.Inspection:
    """Look at a sample of the images, place the labels, measure a small run; write the outcome where `out` says."""
    found = inspecting.inspect(given)
    if given.out:
        inspecting.write(found, given.out)
    with best_effort("the inspection could not be shown"):
        create_markdown_artifact(_markdown(found), key="inspection", description="Images and labels before a run")
    return found


def _markdown(found: inspecting.Inspection) -> str:
    said = "\n".join(f"- {text.markdown(line.strip())}" for line in inspecting.lines(found))
    if found.contact_sheet is None:
        return said
    return f"{said}\n\n![contact sheet]({broken.url(found.contact_sheet, 'JPEG')})\n"
