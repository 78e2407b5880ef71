"""Export tasks: write artifacts and specs, and show them in the UI."""

from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from genenc_core import spec, text
from genenc_core.export import exporter
from genenc_core.run import model_export, parameters
from genenc_tasks.names import named
from genenc_tasks.reporting import best_effort


@task(task_run_name=named("export {given.title} as {given.formats}"), cache_policy=NO_CACHE)
def export_artifacts(given: parameters.ExportParameters) -> list[exporter.ExportedModel]:
    """Export a model, compare the artifacts with the eager model and write their specs."""
    return model_export.export(given)


@task(task_run_name=named("spec {done.spec_path.name}"), cache_policy=NO_CACHE)
def generate_spec(done: exporter.ExportedModel) -> spec.RuntimeModelSpec:
    """Read the spec back, validate it and show it in the UI."""
    found = spec.load_spec(done.spec_path)
    lines = "\n".join(f"- {text.markdown(line.strip())}" for line in model_export.summary(done))
    markdown = f"{lines}\n\n{text.code_block(found.to_json(), 'json')}\n"
    described = f"RuntimeModelSpec of {text.markdown(found.model_id)}"
    with best_effort("the spec could not be shown"):
        create_markdown_artifact(markdown, key="model-spec", description=described)
    return found
