"""The commands `report` and `preview`: looking at results."""

from collections.abc import Callable
from typing import Any

import typer

from genenc_core.cli import output, usage
from genenc_core.cli.usage import Json


def add_to(app: typer.Typer) -> None:
    """Register the commands."""

    @usage.lazy_command(
        app,
        "report",
        short_help="One HTML page about a run or dataset: pictures, values, times.",
        example="genenc report run --out report.html",
        guide="genenc_core/report/README.md",
    )
    def make_report() -> Callable[..., None]:
        from genenc_core.cli import options
        from genenc_core.report.parameters import ReportParameters

        fields = ReportParameters.model_fields

        @options.generated(fields, arguments=("source",), names={"source": "RUN|DATASET"})
        def report(values: dict[str, Any], config: usage.Config = None, json: Json = False) -> None:
            """Write one HTML file that shows what ran, what is stored, and what stands out in it; changes nothing else.

            Exit codes: 0 written, 1 the run is damaged, 2 wrong usage.
            """
            with output.report_errors(as_json=json):
                from genenc_core.cli import reporting

                given = usage.merge_config(config, values, fields, required=("source",))
                raise typer.Exit(reporting.report(_options(given), as_json=json))

        return report

    @usage.lazy_command(
        app,
        "preview",
        short_help="Pictures of one image: its map, channels, what is like a point.",
        example="genenc preview run --row 12 --out look",
        guide="genenc_core/report/README.md",
    )
    def make_preview() -> Callable[..., None]:
        from genenc_core.cli import options
        from genenc_core.report.parameters import PreviewParameters

        fields = PreviewParameters.model_fields

        @options.generated(fields, arguments=("source",), names={"source": "RUN|DATASET"})
        def preview(values: dict[str, Any], config: usage.Config = None, json: Json = False) -> None:
            """Write PNGs of one image whose map is stored: the map in colours, channels, similarity to points.

            Exit codes: 0 written, 1 the run is damaged, 2 wrong usage.
            """
            with output.report_errors(as_json=json):
                from genenc_core.cli import reporting

                given = usage.merge_config(config, values, fields, required=("source",))
                raise typer.Exit(reporting.preview(_options(given), as_json=json))

        return preview


def _options(given: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if name not in usage.SWITCHES}
