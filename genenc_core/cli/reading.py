"""Read-only commands: `status`, `verify`, `info`, `models`, `schema`, `completion`."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from genenc_core import choices, errors
from genenc_core.cli import completing, output, usage
from genenc_core.cli.usage import Json, RunArgument


def add_to(app: typer.Typer) -> None:
    """Register the commands."""

    @usage.command(
        app,
        short_help="Show the state of a run.",
        example="genenc status run --json",
        guide="genenc_core/run/RUN_FOLDER.md",
    )
    def status(run: RunArgument, json: Json = False) -> None:
        """Show the state of a run; exit code 0 complete, 3 complete with unreadable images, 1 not complete."""
        with output.report_errors(as_json=json):
            from genenc_core.cli import state

            raise typer.Exit(state.status(run, as_json=json))

    @usage.command(
        app,
        short_help="Check every stored object against its record; --repair.",
        example="genenc verify run --content",
        guide="genenc_core/run/RUN_FOLDER.md",
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
        with output.report_errors(as_json=json):
            from genenc_core.cli import state

            raise typer.Exit(state.verify(run, content=content, repair=repair, as_json=json))

    @usage.lazy_command(
        app,
        "inspect",
        short_help="Look at images, labels and cost before a run.",
        example="genenc inspect photos/ --points labels.csv --model resnet18 --out look",
        guide="genenc_core/inspection/README.md",
    )
    def make_inspect() -> Callable[..., None]:
        from genenc_core.cli import options
        from genenc_core.inspection import parameters

        fields = parameters.InspectParameters.model_fields

        @options.generated({name: fields[name] for name in parameters.SHOWN}, arguments=("images",))
        def inspect(values: dict[str, Any], config: usage.Config = None, json: Json = False) -> None:
            """Look at a sample of the images, place the labels in what the model sees, and measure a small run.

            Exit codes: 0 nothing wrong, 3 some images unreadable, 2 the labels would be refused.
            """
            with output.report_errors(as_json=json):
                from genenc_core.cli import inspection

                given = usage.merge_config(config, values, fields, required=("images",))
                given = {name: value for name, value in given.items() if name not in usage.SWITCHES}
                raise typer.Exit(inspection.inspect(given, as_json=json))

        return inspect

    @usage.lazy_command(
        app,
        "info",
        short_help="Show what a run contains, or describe a model.",
        example="genenc info resnet18",
        guide="genenc_core/models/ENCODERS.md",
    )
    def make_info() -> Callable[..., None]:
        from genenc_core.cli import options
        from genenc_core.run.parameters import ExtractParameters

        @options.generated({name: ExtractParameters.model_fields[name] for name in ("models", "trust")})
        def info(
            target: Annotated[
                str,
                typer.Argument(help="A run folder, a spec JSON, or a model's name or id.", metavar="RUN|SPEC|MODEL"),
            ],
            values: dict[str, Any],
            json: Json = False,
        ) -> None:
            """Show what a run contains, or describe a model: slots, batches, preprocessing; loads no weights."""
            with output.report_errors(as_json=json):
                from genenc_core.cli import state

                state.info(target, values["models"] or (), trust=bool(values["trust"]), as_json=json)

        return info

    @usage.lazy_command(
        app,
        "models",
        short_help="List the encoders available by name.",
        example="genenc models --search 'resnet*' --source timm",
        guide="genenc_core/models/ENCODERS.md",
    )
    def make_models() -> Callable[..., None]:
        from genenc_core.cli import options
        from genenc_core.run.parameters import ExtractParameters

        @options.generated({"models": ExtractParameters.model_fields["models"]})
        def list_models(
            values: dict[str, Any],
            search: Annotated[
                str | None,
                usage.option(
                    help="Only names that contain this text; with * a pattern.",
                    group=choices.MODEL,
                    default="all names",
                    metavar="<text>",
                ),
            ] = None,
            source: Annotated[
                choices.ListedSource | None,
                usage.option(help="Only models from here.", group=choices.MODEL, default="all sources"),
            ] = None,
            shapes: Annotated[
                bool,
                usage.option(
                    "--shapes",
                    help="Show the output shapes of every row; without it, of up to 50 rows.",
                    group=choices.MODEL,
                ),
            ] = False,
            json: Json = False,
        ) -> None:
            """List the encoders available by name; if there are few, with shapes from a dry run without weights."""
            with output.report_errors(as_json=json):
                from genenc_core.cli import models as models_command

                models_command.run(search, source, values["models"] or (), every_shape=shapes, as_json=json)

        return list_models

    @usage.command(
        app,
        short_help="Show what extract --like TOOL sets.",
        example="genenc presets",
        guide="genenc_core/models/ENCODERS.md",
    )
    def presets(json: Json = False) -> None:
        """Show which options `--like` sets for each tool, what the tool computes, and what must be given beside it."""
        with output.report_errors(as_json=json):
            from genenc_core.cli import presets as presets_command

            presets_command.run(as_json=json)

    @usage.command(
        app,
        short_help="Print the JSON Schema of a RuntimeModelSpec.",
        example="genenc schema --out schema.json",
        guide="genenc_core/export/README.md",
    )
    def schema(
        of: Annotated[
            choices.SchemaOf,
            typer.Argument(help="spec: a RuntimeModelSpec; emb: the attributes of a run's features.zarr."),
        ] = "spec",
        out: Annotated[
            Path | None, usage.option(help="Write to this file.", group=choices.STORE, default="standard output")
        ] = None,
    ) -> None:
        """Print the JSON Schema of a RuntimeModelSpec, or of the attributes that say what a run's vectors are."""
        from importlib import resources

        from genenc_core import spec

        with output.report_errors():
            emb = resources.files("genenc_core.run") / "emb.schema.json"
            found = spec.json_schema() if of == "spec" else emb.read_text(encoding="utf-8")
            if out is None:
                output.say(found.splitlines())
                return
            try:
                out.write_text(found, encoding="utf-8")
            except OSError as error:
                raise errors.InputError(f"--out {str(out)!r} cannot be written: {error.strerror}") from error

    @usage.command(
        app,
        short_help="Print a shell completion script.",
        example="genenc completion bash",
        guide="genenc_core/cli/COMMANDS.md",
    )
    def completion(shell: Annotated[choices.Shell, typer.Argument(help="The shell.")]) -> None:
        """Print a shell completion script; the guide says where to put it."""
        output.say(completing.script(shell).splitlines())
