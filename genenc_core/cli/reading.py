"""The commands that only read: `status`, `verify`, `info`, `models`, `schema`, `completion`."""

from pathlib import Path
from typing import Annotated

import typer

from genenc_core import choices, errors
from genenc_core.cli import completing, output, usage
from genenc_core.cli.usage import Json, Models, RunArgument, Trust


def add_to(app: typer.Typer) -> None:
    """Add the commands to the command line."""

    @usage.command(
        app, short_help="Show the state of a run.", example="genenc status run --json", guide="The run folder"
    )
    def status(run: RunArgument, json: Json = False) -> None:
        """Show the state of a run; exit code 0 complete, 3 complete with unreadable images, 1 not complete."""
        with output.errors_as_words(as_json=json):
            from genenc_core.cli import inspection

            raise typer.Exit(inspection.status(run, as_json=json))

    @usage.command(
        app,
        short_help="Check every stored object against its record; --repair.",
        example="genenc verify run --content",
        guide="The run folder",
    )
    def verify(
        run: RunArgument,
        content: Annotated[bool, usage.option("--content", help="Also decode every object.", group="Checks")] = False,
        repair: Annotated[
            bool,
            usage.option(
                "--repair", help="Make damaged shards pending (resume encodes them), restore metadata.", group="Checks"
            ),
        ] = False,
        json: Json = False,
    ) -> None:
        """Check every committed object against its commit record; exit code 0 intact or repaired, 1 damaged."""
        with output.errors_as_words(as_json=json):
            from genenc_core.cli import inspection

            raise typer.Exit(inspection.verify(run, content=content, repair=repair, as_json=json))

    @usage.command(
        app,
        short_help="Show what a run contains, or describe a model.",
        example="genenc info resnet18",
        guide="Encoders",
    )
    def info(
        target: Annotated[
            str, typer.Argument(help="A run folder, a spec JSON, or a model's name or id.", metavar="RUN|SPEC|MODEL")
        ],
        models: Models = None,
        trust: Trust = False,
        json: Json = False,
    ) -> None:
        """Show what a run contains, or describe a model: slots, batches, preprocessing; loads no weights."""
        with output.errors_as_words(as_json=json):
            from genenc_core.cli import inspection

            inspection.info(target, tuple(models or ()), trust=trust, as_json=json)

    @usage.command(
        app,
        "models",
        short_help="List the encoders available by name.",
        example="genenc models --search 'resnet*' --source timm",
        guide="Encoders",
    )
    def list_models(
        search: Annotated[
            str | None,
            usage.option(
                help="Only names that contain this text; with * a pattern.",
                group=usage.MODEL,
                default="all names",
                metavar="<text>",
            ),
        ] = None,
        source: Annotated[
            choices.ListedSource | None,
            usage.option(help="Only models from here.", group=usage.MODEL, default="all sources"),
        ] = None,
        shapes: Annotated[
            bool,
            usage.option(
                "--shapes", help="Show the output shapes of every row; without it, of up to 50 rows.", group=usage.MODEL
            ),
        ] = False,
        models: Models = None,
        json: Json = False,
    ) -> None:
        """List the encoders available by name; channels come from a run without weights when the rows are few."""
        with output.errors_as_words(as_json=json):
            from genenc_core.cli import models as models_command

            models_command.run(search, source, tuple(models or ()), every_shape=shapes, as_json=json)

    @usage.command(
        app,
        short_help="Print the JSON Schema of a RuntimeModelSpec.",
        example="genenc schema --out schema.json",
        guide="Exported models",
    )
    def schema(
        out: Annotated[
            Path | None, usage.option(help="Write to this file.", group=usage.STORE, default="standard output")
        ] = None,
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

    @usage.command(
        app,
        short_help="Print a script for the completion of commands and options in a shell.",
        example="genenc completion bash",
        guide="Your images",
    )
    def completion(shell: Annotated[choices.Shell, typer.Argument(help="The shell.")]) -> None:
        """Print a script for the completion of commands and options in a shell; the README says where to put it."""
        output.say(completing.script(shell).splitlines())
