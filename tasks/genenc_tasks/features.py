"""Tasks on stored features: search, comparison, trace, export; a run made again from its record."""

from prefect import task
from prefect.cache_policies import NO_CACHE

from genenc_core.features import comparison, export, provenance, rerun
from genenc_core.features import search as searching
from genenc_core.features import trace as tracing
from genenc_core.features.parameters import (
    CompareParameters,
    ExportFeaturesParameters,
    ExportProvenanceParameters,
    RerunParameters,
    SearchParameters,
    TraceParameters,
)
from genenc_core.run.folder import RunFolder
from genenc_core.run.records import Result
from genenc_tasks.names import named
from genenc_tasks.stopping import cancellable


@task(task_run_name=named("search {given.title}"), cache_policy=NO_CACHE)
def search(given: SearchParameters) -> searching.Neighbours:
    """Find the stored vectors nearest to that of an image, a row, or a point."""
    return searching.search(given)


@task(task_run_name=named("compare {given.title}"), cache_policy=NO_CACHE)
def compare(given: CompareParameters) -> comparison.Comparison:
    """Compare the features that two runs or versions have of the same images."""
    return comparison.compare(given)


@task(task_run_name=named("trace {given.title}"), cache_policy=NO_CACHE)
def trace(given: TraceParameters) -> tracing.Trace:
    """Return everything that is recorded of one row."""
    return tracing.trace(given)


@task(task_run_name=named("export {given.title}"), cache_policy=NO_CACHE)
@cancellable
def export_features(given: ExportFeaturesParameters) -> export.Exported:
    """Write features as Parquet, NumPy files, HDF5, or a folder for the Hugging Face Hub."""
    return export.export(given)


@task(task_run_name=named("export {given.title}"), cache_policy=NO_CACHE)
def export_provenance(given: ExportProvenanceParameters) -> provenance.Written:
    """Write where a run or version comes from, as an RO-Crate or as OpenLineage events."""
    return provenance.write(given)


@task(task_run_name=named("create {given.run_title}"), cache_policy=NO_CACHE)
@cancellable
def create_again(given: RerunParameters) -> tuple[RunFolder, RunFolder]:
    """Compare images, model and code with a run's record; return the run and the new folder of the same identity."""
    source = rerun.opened(given)
    return source, rerun.create(source, given)


@task(task_run_name=named("compare {run.title} with {source.title}"), cache_policy=NO_CACHE)
def compare_again(source: RunFolder, run: RunFolder, result: Result) -> rerun.Rerun:
    """Compare the images and values of a run that was made again with those of the first."""
    rerun.refuse_others(source, run)
    return rerun.outcome(source, run, result)
