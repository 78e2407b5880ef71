"""The `genenc` command line; Prefect is injected as `Flows`, so the core does not depend on it."""

import faulthandler
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from genenc_core import choices, errors
from genenc_core.cli import (
    benchmark,
    completing,
    datasets,
    features,
    operations,
    output,
    probing,
    reading,
    results,
    usage,
)
from genenc_core.cli.runners import Flows, PlainRunner, Runner
from genenc_core.cli.usage import Json, Plain, RunArgument
from genenc_core.system import exits

AS_RECORDED = "the run's own"


def run(flows: Flows | None = None) -> None:
    """Run the command line and exit the process, even if a second Ctrl-C left threads that cannot be joined."""
    code: object = 1
    # Until a command installs its own handlers, SIGTERM acts like Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # Keep child processes from importing from the working directory, which may be an untrusted folder of images.
    os.environ["PYTHONSAFEPATH"] = "1"
    output.open_standard_streams()
    faulthandler.enable(all_threads=False)  # print the stack on a crash
    try:
        build_app(flows)()
    except SystemExit as leaving:
        code = leaving.code
    except OSError as error:
        code = output.report_closed_stdout(error)
    finally:
        code = output.flush(code)
        # Skip interpreter shutdown: running torch threads would abort it, and without memory it may crash.
        if code == errors.Stopped.exit_code or output.ran_out_of_memory():
            sys.stdout.flush()
            sys.stderr.flush()
            exits.leave(code if isinstance(code, int) else 1)
    sys.exit(code if isinstance(code, int) else 1)


def build_app(flows: Flows | None = None) -> typer.Typer:
    """Return the command line app; without `flows`, commands run without Prefect."""
    completing.prepare()
    app = typer.Typer(
        name="genenc",
        cls=usage.Commands,
        help="Turn image sets into features: any encoder, chunked Zarr, every row traceable.",
        no_args_is_help=True,
        invoke_without_command=True,
        add_completion=False,
        rich_markup_mode=None,  # rich help is slow to import and treats [] as markup
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback()
    def about(
        version: Annotated[
            bool, typer.Option("--version", help="Print the version and the commit, and exit.", is_eager=True)
        ] = False,
    ) -> None:
        if version:
            import importlib.metadata

            from genenc_core.system import code_version

            commit = code_version.in_words(code_version.describe())
            output.say([f"{importlib.metadata.version('genenc')}{commit}"])
            raise typer.Exit

    def choose_runner(plain: bool) -> Runner:
        return PlainRunner() if plain or flows is None else flows

    @usage.command(
        app,
        short_help="Try it: draw images, export a model, extract, verify, report.",
        example="genenc demo --out genenc-demo",
        guide="README.md",
    )
    def demo(
        out: Annotated[Path, usage.option(help="Where to put the demo.", group=choices.STORE)] = Path("genenc-demo"),
        plain: Plain = False,
    ) -> None:
        """Draw a small labelled image set, export a model, extract features, verify, report, list the outputs."""
        runner = choose_runner(plain)
        with output.report_errors(), runner.session():
            from genenc_core.cli import demo as demo_command

            raise typer.Exit(demo_command.run(out, runner))

    @usage.lazy_command(
        app,
        "export",
        short_help="Write a model as an artifact with its RuntimeModelSpec.",
        example="genenc export resnet18 --out models --formats torchscript,onnx",
        guide="genenc_core/export/README.md",
    )
    def make_export() -> Callable[..., None]:
        from genenc_core.cli import options
        from genenc_core.run import parameters

        @options.generated(parameters.ExportParameters.model_fields, arguments=("model",))
        def export(values: dict[str, Any], json: Json = False, plain: Plain = False) -> None:
            """Export a model, compare the artifact with the eager model, and write its RuntimeModelSpec.

            The model's normalisation is part of the artifact, which takes RGB in [0, 1]; your own module declares its
            mean and std. For artifacts made elsewhere, pass --mean and --std to genenc extract.
            """
            runner = choose_runner(plain)
            with output.report_errors(as_json=json), runner.session():
                from genenc_core.run import model_export

                given = {name: value for name, value in values.items() if value is not None}
                done = runner.export(parameters.ExportParameters.model_validate(given))
                if json:
                    output.say_json([model_export.describe(item) for item in done])
                else:
                    output.say([line for item in done for line in model_export.summary(item)])

        return export

    @usage.lazy_command(
        app,
        "extract",
        short_help="Turn images into features in a run folder, or continue one.",
        example="genenc extract photos/ --model resnet18 --points labels.csv --out run",
        guide="README.md, genenc_core/images/POINTS.md, genenc_core/encoding/PRODUCTS.md",
        context_settings={"allow_extra_args": True},
    )
    def make_extract() -> Callable[..., None]:
        from genenc_core.cli import options
        from genenc_core.run.parameters import ExtractParameters

        @options.generated(ExtractParameters.model_fields, arguments=("images",))
        def extract(
            context: typer.Context,
            values: dict[str, Any],
            config: usage.Config = None,
            json: usage.JsonOrConfig = None,
            plain: usage.PlainOrConfig = None,
        ) -> None:
            """Turn images into features in a run folder; the same command again continues it.

            Exit codes: 0 all rows stored, 3 some images unreadable (listed), 1 failed, 2 wrong usage, 130 stopped.
            """
            with output.report_errors(as_json=bool(json)):
                as_json = usage.wants_json(config) if json is None else json
            with output.report_errors(as_json=as_json):
                usage.refuse_more_images(values["images"], context.args)
                fields = ExtractParameters.model_fields
                given = usage.merge_config(config, values | {"plain": plain, "json": json}, fields)
                runner, as_json = choose_runner(given.pop("plain")), given.pop("json")
            with output.report_errors(as_json=as_json), runner.session():
                from genenc_core.cli import extraction

                raise typer.Exit(extraction.extract(given, runner, as_json=as_json))

        return extract

    @usage.lazy_command(
        app,
        "resume",
        short_help="Continue a run from its folder alone.",
        example="genenc resume run --shards failed",
        guide="genenc_core/cli/COMMANDS.md, genenc_core/images/READING.md",
    )
    def make_resume() -> Callable[..., None]:
        from genenc_core.cli import options
        from genenc_core.run import parameters

        @options.generated(parameters.fields_of_changes(), usually=AS_RECORDED)
        def resume(
            run: RunArgument,
            values: dict[str, Any],
            shards: Annotated[
                str,
                usage.option(
                    help="Numbers such as 0,3-7, or unreadable: images recorded as unreadable are tried again "
                    "(unreadable:5,17-20 only these rows).",
                    group=choices.RUN,
                    metavar="<pending|failed|N,...|unreadable[:ROW,...]>",
                    values=("pending", "failed", "unreadable"),
                ),
            ] = "pending",
            json: Json = False,
            plain: Plain = False,
        ) -> None:
            """Continue a run from its folder alone: encode what is not committed, or try unreadable images again."""
            runner = choose_runner(plain)
            with output.report_errors(as_json=json), runner.session():
                from genenc_core.cli import extraction

                changes = parameters.Changes(**{name: value for name, value in values.items() if value is not None})
                raise typer.Exit(extraction.resume(run, shards, changes, runner, as_json=json))

        return resume

    probing.add_to(app, choose_runner)
    features.add_to(app, choose_runner)
    datasets.add_to(app, choose_runner)
    reading.add_to(app)
    results.add_to(app)
    operations.add_to(app, flows)
    benchmark.add_to(app, flows)
    return app
