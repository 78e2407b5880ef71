"""Inspection flow: look at images, labels and cost before a run."""

from prefect import flow

from genenc_core.inspection.inspect import Inspection
from genenc_core.inspection.parameters import InspectParameters
from genenc_flows import lost_server, run_logs
from genenc_tasks import inspection


@flow(name="inspect_images", flow_run_name="inspect {given.title}")
def inspect_images(given: InspectParameters) -> Inspection:
    """Look at a sample of images, place labels in what the model sees, and measure a small run."""
    run_logs.prepare()
    return lost_server.keep(inspection.inspect(given))
