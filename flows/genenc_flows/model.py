"""The export flow: artifacts of a model, compared with it, and their specs."""

from prefect import flow

from genenc_core.export import exporter
from genenc_core.run import parameters
from genenc_flows import lost_server, run_logs
from genenc_tasks import model


@flow(name="export_model", flow_run_name="export {given.title}")
def export_model(given: parameters.ExportParameters) -> list[exporter.ExportedModel]:
    """Export a model in every requested format; return the exported models."""
    run_logs.prepare()
    done = model.export_artifacts(given)
    for item in done:
        model.generate_spec(item)
    return lost_server.keep(done)
