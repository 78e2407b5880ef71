"""Reporting flow: write a page about a run or dataset, and show its main figures."""

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed

from genenc_core.report.parameters import ReportParameters
from genenc_flows import lost_server, run_logs
from genenc_tasks import results


@flow(name="report_results", flow_run_name="report on {given.title}")
def report_results(given: ReportParameters) -> State[Any]:
    """Look at a run or dataset: write one HTML page where `out` says, and show its main figures as an artifact."""
    run_logs.prepare()
    made = results.report(given)
    return lost_server.keep(Completed(message="; ".join(made.lines())[:1000], data=made.as_json()))
