"""The `bench` command: extraction throughput on this machine, and the cost of each stage."""

from pathlib import Path
from typing import Annotated

import typer

from genenc_core import choices, errors
from genenc_core.cli import output, usage
from genenc_core.cli.runners import Runner
from genenc_core.cli.usage import Json

MEASURED = "Measurements"


def add_to(app: typer.Typer, flows: Runner | None) -> None:
    """Register the command."""

    @usage.command(
        app,
        short_help="Measure this machine, alternatives side by side.",
        example="genenc bench --suite data,end-to-end --quick",
        guide="tests/benchmarks/RESULTS.md",
    )
    def bench(
        suite: Annotated[
            str,
            usage.option(
                help="What to measure; commas between.",
                group=MEASURED,
                metavar="<all|data|model|end-to-end|start|cores|memory>,...",
                values=("all", "data", "model", "end-to-end", "start", "cores", "memory"),
            ),
        ] = "all",
        repeats: Annotated[
            int | None, usage.option(help="Measurements of each.", group=MEASURED, default="5, with --quick 3", min=1)
        ] = None,
        quick: Annotated[
            bool, usage.option("--quick", help="Fewer images and repeats: minutes.", group=MEASURED)
        ] = False,
        compiled: Annotated[
            bool, usage.option("--compiled", help="AOTInductor too; it compiles for minutes.", group=MEASURED)
        ] = False,
        folder: Annotated[
            Path | None, usage.option(help="Where to work.", group=choices.STORE, default="the temporary folder")
        ] = None,
        out: Annotated[
            Path | None, usage.option(help="Also write the figures to this JSON file.", group=choices.STORE)
        ] = None,
        json: Json = False,
    ) -> None:
        """Measure this machine, alternatives interleaved; print a Markdown table or JSON."""
        with output.report_errors(as_json=json):
            import tempfile

            from genenc_core.bench import report, suites, table

            names = suites.chosen(suite)
            if out is not None and not out.absolute().parent.is_dir():
                raise errors.InputError(f"--out {str(out)!r}: no such folder; create it, or choose another")
            if folder is not None and not folder.is_dir():
                raise errors.InputError(f"--folder {str(folder)!r} is not a folder: create it, or choose another")
            with tempfile.TemporaryDirectory(dir=folder, prefix="genenc-bench-") as scratch:
                options = report.Options(
                    folder=Path(scratch),
                    repeats=repeats or (3 if quick else 5),
                    quick=quick,
                    compiled=compiled,
                    flows=None if flows is None else f"{type(flows).__module__}:{type(flows).__qualname__}",
                    tell=output.tell,
                )
                words = f"genenc bench --suite {suite}{' --quick' if quick else ''}"
                words += f" --repeats {repeats}" if repeats else ""
                words += " --compiled" if compiled else ""
                found = suites.measure(names, options, command=words)
            # Print before writing: a full disk must not lose the results.
            if json:
                output.say_json(found)
            else:
                output.say(table.report(found).splitlines())
            if out is not None:
                out.write_text(found.to_json(), encoding="utf-8")
            if found.stopped:
                raise errors.Stopped(f"stopped after {len(found.tables)} tables")
            failed = suites.failures(found)
            for line in failed:
                output.tell(f"failed: {line}")
            raise typer.Exit(1 if failed else 0)
