"""The flow `export_model`: a model to artifacts, compared with it, and their specs."""

from prefect import flow

from genenc_core.export import exporting
from genenc_core.run import model_export
from genenc_flows import lost_server
from genenc_tasks import model


@flow(name="export_model", flow_run_name="export {given.title}")
def export_model(given: model_export.ExportParameters) -> list[exporting.ExportedModel]:
    """Export a model in every format asked for; return what was written."""
    done = model.export_artifacts(given)
    for item in done:
        model.generate_spec(item)
    return lost_server.keep(done)
