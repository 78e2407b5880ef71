"""The `probe` command: new points and poolings on stored maps."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import typer

from genenc_core.cli import output, usage

if TYPE_CHECKING:
    from genenc_core.cli.runners import Runner


def add_to(app: typer.Typer, choose_runner: "Callable[[bool], Runner]") -> None:
    """Register the command."""

    @usage.lazy_command(
        app,
        "probe",
        short_help="New points or poolings on the maps that a run stores.",
        example="genenc probe run --points labels.csv --out probes",
        guide="genenc_core/probing/README.md, genenc_core/images/POINTS.md, genenc_core/encoding/PRODUCTS.md",
    )
    def make_probe() -> Callable[..., None]:
        from genenc_core.cli import options
        from genenc_core.probing.parameters import ProbeParameters

        fields = ProbeParameters.model_fields

        @options.generated(fields, arguments=("source",), names={"source": "RUN|DATASET"})
        def probe(
            values: dict[str, Any],
            config: usage.Config = None,
            json: usage.JsonOrConfig = None,
            plain: usage.PlainOrConfig = None,
        ) -> None:
            """Store vectors at new points, or poolings, of maps that a run or dataset stores; needs no image or model.

            The same command again continues. Exit codes: 0 all rows stored, 3 some images unreadable, 1 failed or not
            all maps are there yet, 2 wrong usage, 130 stopped.
            """
            with output.report_errors(as_json=bool(json)):
                as_json = usage.wants_json(config) if json is None else json
            with output.report_errors(as_json=as_json):
                more = {"plain": plain, "json": json}
                given = usage.merge_config(config, values | more, fields, required=("source", "out"))
                runner, as_json = choose_runner(given.pop("plain")), given.pop("json")
            with output.report_errors(as_json=as_json), runner.session():
                from genenc_core.cli import extraction

                raise typer.Exit(extraction.probe(given, runner, as_json=as_json))

        return probe
