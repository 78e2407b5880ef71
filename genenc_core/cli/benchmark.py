"""`bench`: how fast this machine extracts features, next to what its parts alone cost."""

from pathlib import Path
from typing import Annotated

import typer

from genenc_core import errors
from genenc_core.cli import output, usage
from genenc_core.cli.runners import Runner
from genenc_core.cli.usage import Json

MEASURED = "Measurements"


def add_to(app: typer.Typer, flows: Runner | None) -> None:
    """Add the command to the command line."""

    @usage.command(
        app,
        short_help="Measure this machine, alternatives side by side.",
        example="genenc bench --suite end-to-end,store --quick",
        guide="How fast",
    )
    def bench(
        suite: Annotated[
            str,
            usage.option(
                help="What to measure; commas between.",
                group=MEASURED,
                metavar="<all|data|model|store|end-to-end|start|scale|peers>,...",
                values=("all", "data", "model", "store", "end-to-end", "start", "scale", "peers"),
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
        peers: Annotated[
            Path | None, usage.option(help="A folder of other tools' environments.", group=MEASURED, default="none")
        ] = None,
        folder: Annotated[
            Path | None, usage.option(help="Where to work.", group=usage.STORE, default="the temporary folder")
        ] = None,
        out: Annotated[
            Path | None, usage.option(help="Also write the figures to this JSON file.", group=usage.STORE)
        ] = None,
        json: Json = False,
    ) -> None:
        """Measure this machine: each way beside the others, in turn, as a Markdown table and JSON."""
        with output.errors_as_words(as_json=json):
            import tempfile

            from genenc_core.bench import records, suites, table

            names = suites.chosen(suite)
            if out is not None and not out.absolute().parent.is_dir():
                raise errors.InputError(f"--out {str(out)!r}: its folder does not exist; create it, or choose another")
            for option, given in (("folder", folder), ("peers", peers)):
                if given is not None and not given.is_dir():
                    raise errors.InputError(f"--{option} {str(given)!r} is not a folder: create it, or choose another")
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
