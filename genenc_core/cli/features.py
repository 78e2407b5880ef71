"""Commands on stored features: `search`, `compare`, `trace`, `rerun-from`, `export-features`, `export-provenance`."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import typer

from genenc_core.cli import output, usage
from genenc_core.cli.usage import Json

if TYPE_CHECKING:
    from genenc_core.cli.runners import Runner
    from genenc_core.features.parameters import ExportFeaturesParameters, RerunParameters

GUIDE = "genenc_core/features/README.md"


def add_to(app: typer.Typer, choose_runner: "Callable[[bool], Runner]") -> None:
    """Register the commands."""

    @usage.lazy_command(
        app,
        "search",
        short_help="Find the stored vectors nearest to that of an image.",
        example="genenc search run --like photo.jpg --top 5",
        guide=GUIDE,
    )
    def make_search() -> Callable[..., None]:
        from genenc_core.cli import options
        from genenc_core.features.parameters import SearchParameters

        fields = SearchParameters.model_fields

        @options.generated(fields, arguments=("source",), names={"source": "RUN|DATASET"})
        def search(values: dict[str, Any], config: usage.Config = None, json: Json = False) -> None:
            """Find the stored vectors nearest to that of an image, a stored row, or a point; exact, in little memory.

            Rows without features are left out and counted; equal distances are in the order of rows.
            """
            with output.report_errors(as_json=json):
                from genenc_core.features import search

                given = SearchParameters.model_validate(_merged(config, values, fields, ("source",)))
                if given.like is not None:
                    from genenc_core.images.load import decode_server

                    decode_server.prepare()
                found = search.search(given)
                if json:
                    output.say_json(found.as_json())
                else:
                    output.say_table(found.headings(), found.lines())
                    output.tell(found.summary())

        return search

    @usage.lazy_command(
        app,
        "trace",
        short_help="Say everything that is recorded of one row.",
        example="genenc trace run --image img_001.png",
        guide=GUIDE,
    )
    def make_trace() -> Callable[..., None]:
        from genenc_core.cli import options
        from genenc_core.features.parameters import TraceParameters

        fields = TraceParameters.model_fields

        @options.generated(fields, arguments=("source",), names={"source": "RUN|DATASET"})
        def trace(values: dict[str, Any], config: usage.Config = None, json: Json = False) -> None:
            """Say everything that is recorded of one row: file, transform, model, shard, attempt, session, versions."""
            with output.report_errors(as_json=json):
                from genenc_core.features import trace

                found = trace.trace(
                    TraceParameters.model_validate(_merged(config, values, fields, ("source", "image")))
                )
                if json:
                    output.say_json(found.as_json())
                else:
                    output.say(found.lines())

        return trace

    @usage.lazy_command(
        app,
        "compare",
        short_help="Compare the features of two runs or versions.",
        example="genenc compare run other-run",
        guide=GUIDE,
    )
    def make_compare() -> Callable[..., None]:
        from genenc_core.cli import options
        from genenc_core.features.parameters import CompareParameters

        fields = CompareParameters.model_fields

        @options.generated(
            fields, arguments=("source", "other"), names={"source": "RUN|DATASET", "other": "RUN|DATASET"}
        )
        def compare(values: dict[str, Any], config: usage.Config = None, json: Json = False) -> None:
            """Compare the features that two have of the same images: row by row, as a whole, and why they differ."""
            with output.report_errors(as_json=json):
                from genenc_core.features import comparison

                given = CompareParameters.model_validate(_merged(config, values, fields, ("source", "other")))
                found = comparison.compare(given)
                if json:
                    output.say_json(found.as_json())
                    return
                output.say(found.lines())
                for title, headings, rows in found.tables():
                    output.say(["", title])
                    output.say_table(headings, rows)

        return compare

    @usage.lazy_command(
        app,
        "rerun-from",
        short_help="Make a run again from its record alone.",
        example="genenc rerun-from run --out again",
        guide=GUIDE,
    )
    def make_rerun() -> Callable[..., None]:
        from genenc_core.cli import options
        from genenc_core.features.parameters import RerunParameters

        fields = RerunParameters.model_fields

        @options.generated(fields, arguments=("source",), names={"source": "RUN"})
        def rerun_from(
            values: dict[str, Any],
            config: usage.Config = None,
            json: usage.JsonOrConfig = None,
            plain: usage.PlainOrConfig = None,
        ) -> None:
            """Make a run again from its record alone, and compare its values with the first one's.

            Images, model, weights or code that are not those of the record are refused by name. The same command
            again continues. Exit codes: 0 all values are the same, 1 failed or some differ, 2 wrong usage, 130 stopped.
            """
            with output.report_errors(as_json=bool(json)):
                as_json = usage.wants_json(config) if json is None else json
            with output.report_errors(as_json=as_json):
                more = {"plain": plain, "json": json}
                given = usage.merge_config(config, values | more, fields, required=("source", "out"))
                runner, as_json = choose_runner(given.pop("plain")), given.pop("json")
            with output.report_errors(as_json=as_json), runner.session():
                raise typer.Exit(_rerun(RerunParameters.model_validate(given), runner, as_json=as_json))

        return rerun_from

    @usage.lazy_command(
        app,
        "export-features",
        short_help="Write features as Parquet, npy, HDF5, or for the Hub.",
        example="genenc export-features run --format parquet --out tables",
        guide=GUIDE,
    )
    def make_export() -> Callable[..., None]:
        from genenc_core.cli import options
        from genenc_core.features.parameters import ExportFeaturesParameters

        fields = ExportFeaturesParameters.model_fields

        @options.generated(fields, arguments=("source",), names={"source": "RUN|DATASET"})
        def export_features(
            values: dict[str, Any],
            config: usage.Config = None,
            json: Json = False,
        ) -> None:
            """Write the features of a run or version to a new place, which appears when it is complete."""
            with output.report_errors(as_json=json):
                given = _merged(config, values, fields, ("source", "out"))
                raise typer.Exit(_export(ExportFeaturesParameters.model_validate(given), as_json=json))

        return export_features

    @usage.lazy_command(
        app,
        "export-provenance",
        short_help="Write where a run comes from, as RO-Crate or OpenLineage.",
        example="genenc export-provenance run --license CC-BY-4.0",
        guide=GUIDE,
    )
    def make_provenance() -> Callable[..., None]:
        from genenc_core.cli import options
        from genenc_core.features.parameters import ExportProvenanceParameters

        fields = ExportProvenanceParameters.model_fields

        @options.generated(fields, arguments=("source",), names={"source": "RUN|DATASET"})
        def export_provenance(values: dict[str, Any], config: usage.Config = None, json: Json = False) -> None:
            """Write what the records say of a run or version: inputs, model, parameters, sessions, software, files.

            One file is written beside the arrays, or replaced there; nothing else is touched.
            """
            with output.report_errors(as_json=json):
                from genenc_core.features import provenance

                given = ExportProvenanceParameters.model_validate(_merged(config, values, fields, ("source",)))
                done = provenance.write(given)
                if json:
                    output.say_json(done.as_json())
                else:
                    output.say(done.lines())

        return export_provenance


def _export(given: "ExportFeaturesParameters", *, as_json: bool) -> int:
    from genenc_core.features import export

    done = export.export(given)
    if as_json:
        output.say_json(done.as_json())
    else:
        output.say(done.lines())
    return 0


def _rerun(given: "RerunParameters", runner: "Runner", *, as_json: bool) -> int:
    from genenc_core.cli import extraction
    from genenc_core.features import rerun
    from genenc_core.images.load import decode_server
    from genenc_core.run import out_folder, status

    decode_server.prepare()
    rerun.opened(given)
    out_folder.check(given.out)

    def report(done: "rerun.Rerun") -> int:
        if as_json:
            output.say_json(done.as_json())
        else:
            output.say(done.lines())
        return 0 if done.identical else 1

    return extraction.watch(
        lambda: runner.rerun(given), report, state=lambda: status.progress_summary(given.out), as_json=as_json
    )


def _merged(config: Any, values: dict[str, Any], fields: Any, required: tuple[str, ...]) -> dict[str, Any]:
    given = usage.merge_config(config, values, fields, required=required)
    return {name: value for name, value in given.items() if name not in usage.SWITCHES}
