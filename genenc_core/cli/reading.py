"""The commands that only read: `status`, `verify`, `info`, `models`, `schema`."""

from pathlib import Path
from typing import Annotated

import typer

from genenc_core import errors
from genenc_core.cli import output
from genenc_core.cli.usage import Json, Models, RunArgument, Trust


def add_to(app: typer.Typer) -> None:
    """Add the commands to the command line."""

    @app.command(short_help="Say where a run stands.")
    def status(run: RunArgument, json: Json = False) -> None:
        """Say where a run stands; exit code 0 complete, 3 complete with unreadable images, 1 not complete."""
        with output.errors_as_words(as_json=json):
            from genenc_core.cli import inspection

            raise typer.Exit(inspection.status(run, as_json=json))

    @app.command(short_help="Check every stored object against its record; --repair.")
    def verify(
        run: RunArgument,
        content: Annotated[bool, typer.Option("--content", help="Also decode every object.")] = False,
        repair: Annotated[
            bool, typer.Option("--repair", help="Make damaged shards pending (resume encodes them), restore metadata.")
        ] = False,
        json: Json = False,
    ) -> None:
        """Check every committed object against its commit record; exit code 0 intact or repaired, 1 damaged."""
        with output.errors_as_words(as_json=json):
            from genenc_core.cli import inspection

            raise typer.Exit(inspection.verify(run, content=content, repair=repair, as_json=json))

    @app.command(short_help="Say what a run holds, or what a model is.")
    def info(
        target: Annotated[
            str, typer.Argument(help="A run folder, a spec JSON, or a model's name or id.", metavar="RUN|SPEC|MODEL")
        ],
        models: Models = None,
        trust: Trust = False,
        json: Json = False,
    ) -> None:
        """Say what a run holds, or what a model is: slots, batches, preprocessing; no weights are loaded for it."""
        with output.errors_as_words(as_json=json):
            from genenc_core.cli import inspection

            inspection.info(target, tuple(models or ()), trust=trust, as_json=json)

    @app.command("models", short_help="List the encoders that a name reaches.")
    def list_models(
        search: Annotated[str | None, typer.Option(help="Only names that hold this text; with * a pattern.")] = None,
        source: Annotated[str | None, typer.Option(help="genenc, json, torchvision or timm.")] = None,
        shapes: Annotated[bool, typer.Option("--shapes", help="Find the channels of every row, however many.")] = False,
        models: Models = None,
        json: Json = False,
    ) -> None:
        """List the encoders that a name reaches; channels come from a run without weights when the rows are few."""
        with output.errors_as_words(as_json=json):
            from genenc_core.cli import models as models_command

            models_command.run(search, source, tuple(models or ()), every_shape=shapes, as_json=json)

    @app.command(short_help="Print the JSON Schema of a RuntimeModelSpec.")
    def schema(
        out: Annotated[Path | None, typer.Option(help="Write to this file instead of standard output.")] = None,
    ) -> None:
        """Print the JSON Schema of a RuntimeModelSpec."""
        from genenc_core import spec

        with output.errors_as_words():
            if out is None:
                output.say(spec.json_schema().splitlines())
                return
            try:
                out.write_text(spec.json_schema(), encoding="utf-8")
            except OSError as error:
                raise errors.InputError(f"--out {str(out)!r} cannot be written: {error.strerror}") from error
