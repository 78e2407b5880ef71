"""`bench`: how fast this machine extracts features, next to what its parts alone cost."""

from pathlib import Path
from typing import Annotated

import typer

from genenc_core import errors
from genenc_core.cli import output
from genenc_core.cli.runners import Runner
from genenc_core.cli.usage import Json


def add_to(app: typer.Typer, flows: Runner | None) -> None:
    """Add the command to the command line."""

    @app.command(short_help="Measure this machine, each way beside the others.")
    def bench(
        suite: Annotated[
            str, typer.Option(help="data, model, store, end-to-end, start, scale, peers; commas between; or all.")
        ] = "all",
        out: Annotated[Path | None, typer.Option(help="Also write the figures to this JSON file.")] = None,
        repeats: Annotated[int | None, typer.Option(help="Measurements of each; 5, or 3 with --quick.", min=1)] = None,
        quick: Annotated[bool, typer.Option("--quick", help="Fewer images and repeats: minutes.")] = False,
        compiled: Annotated[bool, typer.Option("--compiled", help="AOTInductor too; it compiles for minutes.")] = False,
        peers: Annotated[Path | None, typer.Option(help="A folder of other tools' environments.")] = None,
        folder: Annotated[Path | None, typer.Option(help="Where to work; none: the temporary folder.")] = None,
        json: Json = False,
    ) -> None:
        """Measure this machine: each way beside the others, in turn, as a Markdown table and JSON."""
        with output.errors_as_words(as_json=json):
            import tempfile

            from genenc_core.bench import records, suites, table

            names = suites.chosen(suite)
            if out is not None and not out.absolute().parent.is_dir():
                raise errors.InputError(f"--out {str(out)!r}: its folder is not there; make it, or give another")
            for option, given in (("folder", folder), ("peers", peers)):
                if given is not None and not given.is_dir():
                    raise errors.InputError(f"--{option} {str(given)!r} is no folder: make it, or give another")
            with tempfile.TemporaryDirectory(dir=folder, prefix="genenc-bench-") as scratch:
                options = records.Options(
                    folder=Path(scratch),
                    repeats=repeats or (3 if quick else 5),
                    quick=quick,
                    compiled=compiled,
                    flows=None if flows is None else f"{type(flows).__module__}:{type(flows).__qualname__}",
                    peers=peers,
                    tell=output.tell,
                )
                words = f"genenc bench --suite {suite}{' --quick' if quick else ''}"
                words += f" --repeats {repeats}" if repeats else ""
                words += " --compiled" if compiled else ""
                words += " --peers FOLDER" if peers else ""
                found = suites.measure(names, options, command=words)
            # Shown before it is written: a full disk must not cost the figures.
            if json:
                output.say_json(found)
            else:
                output.say(table.report(found).splitlines())
            if out is not None:
                out.write_text(found.to_json(), encoding="utf-8")
            if found.stopped:
                raise errors.Stopped(f"stopped: {len(found.tables)} tables were done")
            failed = suites.failures(found)
            for line in failed:
                output.tell(f"failed: {line}")
            raise typer.Exit(1 if failed else 0)
