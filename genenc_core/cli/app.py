"""The commands of `genenc`; what needs Prefect comes in as a `Runner`, so that the core stays free of it."""

import os
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from genenc_core import errors
from genenc_core.cli import benchmark, output, reading, usage
from genenc_core.cli.runners import PlainRunner, Runner
from genenc_core.cli.usage import AcceptChanged, Json, Models, Plain, RunArgument, Trust


def run(flows: Runner | None = None) -> None:
    """Run the command line and end the process, also when a second Ctrl-C left threads that cannot be waited for."""
    code: object = 1
    # Until the work sets its own way to stop, a SIGTERM ends the command as a Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # No child process, of ours or of a library, imports from the working directory, which may be a folder of images.
    os.environ["PYTHONSAFEPATH"] = "1"
    output.open_standard_streams()
    try:
        build_app(flows)()
    except SystemExit as leaving:
        code = leaving.code
    except OSError as error:
        code = output.tell_lost_output(error)
    finally:
        code = output.flushed(code)
        # torch's threads abort an interpreter that shuts down under them.
        if code == errors.Stopped.exit_code:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(errors.Stopped.exit_code)
    sys.exit(code if isinstance(code, int) else 1)


def build_app(flows: Runner | None = None) -> typer.Typer:
    """Return the command line; without `flows` every command runs plain."""
    app = typer.Typer(
        name="genenc",
        cls=usage.Commands,
        help="Turn image sets into features: any encoder, chunked Zarr, every row traceable.",
        no_args_is_help=True,
        invoke_without_command=True,
        add_completion=False,
        rich_markup_mode=None,  # typer's drawn help takes longer to import than all the rest, and reads [] as markup
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback()
    def about(
        version: Annotated[bool, typer.Option("--version", help="Print the version and leave.", is_eager=True)] = False,
    ) -> None:
        if version:
            import importlib.metadata

            output.say([importlib.metadata.version("genenc")])
            raise typer.Exit

    def runner(plain: bool) -> Runner:
        return PlainRunner() if plain or flows is None else flows

    @app.command(short_help="Try it: draw images, export a model, extract, verify.")
    def demo(
        out: Annotated[Path, typer.Option(help="Where to put the demo.")] = Path("genenc-demo"), plain: Plain = False
    ) -> None:
        """Draw a small labelled image set, export a model, extract features and probes, verify, say what lies where."""
        who = runner(plain)
        with output.errors_as_words(), who.session():
            from genenc_core.cli import demo as demo_command

            raise typer.Exit(demo_command.run(out, who))

    @app.command(short_help="Write a model as an artifact with its RuntimeModelSpec.")
    def export(
        model: Annotated[
            str, typer.Argument(help="A model name, package.module:factory, or a .toml/.yaml model file.")
        ],
        out: Annotated[Path, typer.Option(help="Folder for the artifacts and their specs.")],
        weights: Annotated[str, typer.Option(help="pretrained[:TAG], random:SEED, or a file.")] = "pretrained",
        weights_key: usage.WeightsKey = None,
        image_size: Annotated[str | None, typer.Option(help="H or HxW in pixels.")] = None,
        layers: Annotated[
            list[str] | None, typer.Option(help="Modules or stage indices, commas between: -2,-1.")
        ] = None,
        formats: Annotated[str, typer.Option(help="torchscript, aotinductor, exported_program, onnx.")] = "torchscript",
        batch_min: Annotated[int, typer.Option(help="Fewest images per call.")] = 1,
        batch_max: Annotated[int, typer.Option(help="Most images per call.")] = 32,
        variants: Annotated[str | None, typer.Option(help="One file per batch size instead: 1,8,32.")] = None,
        dynamic_size: Annotated[bool, typer.Option("--dynamic-size", help="Take a range of image sizes.")] = False,
        size_min: Annotated[str | None, typer.Option(help="Smallest size of that range, H or HxW.")] = None,
        size_max: Annotated[str | None, typer.Option(help="Largest size of that range, H or HxW.")] = None,
        trust: Trust = False,
        json: Json = False,
        plain: Plain = False,
    ) -> None:
        """Export a model, compare the artifact with the eager model, and write its RuntimeModelSpec."""
        who = runner(plain)
        with output.errors_as_words(as_json=json), who.session():
            from genenc_core.cli import options
            from genenc_core.run import model_export

            given = model_export.ExportParameters(
                model=model,
                out=str(out),
                weights=weights,
                weights_key=weights_key,
                image_size=image_size,
                layers=options.layers(layers) or (),
                formats=model_export.parse_formats(formats),
                batch_min=batch_min,
                batch_max=batch_max,
                variants=() if variants is None else model_export.parse_variants(variants),
                dynamic_size=dynamic_size,
                size_min=size_min,
                size_max=size_max,
                trust=trust,
            )
            done = who.export(given)
            if json:
                output.say_json([model_export.describe(item) for item in done])
            else:
                output.say([line for item in done for line in model_export.words(item)])

    @app.command(
        short_help="Turn images into features in a run folder, or go on with it.",
        context_settings={"allow_extra_args": True},
    )
    def extract(
        context: typer.Context,
        images: Annotated[str | None, typer.Argument(help="A folder, a quoted glob, or a CSV/Parquet list.")] = None,
        model: Annotated[str | None, typer.Option(help="A model name, a spec JSON, or the model_id of one.")] = None,
        out: Annotated[
            str | None, typer.Option(help="The run folder to create or continue, or s3://bucket/prefix.")
        ] = None,
        weights: Annotated[str | None, typer.Option(help="pretrained[:TAG], random:SEED, or a file.")] = None,
        weights_key: usage.WeightsKey = None,
        mean: Annotated[
            str | None,
            typer.Option(help="Artifacts: mean of RGB in [0, 1], R,G,B, or imagenet, clip, half."),
        ] = None,
        std: Annotated[str | None, typer.Option(help="Artifacts: std, as --mean.")] = None,
        models: Models = None,
        output_shape: Annotated[
            str | None, typer.Option(help="general_encoder only: its first output, such as 768,7,7; compared.")
        ] = None,
        points: Annotated[
            str | None, typer.Option(help="Tidy CSV/Parquet (image,point,x,y) or DeepLabCut CSV.")
        ] = None,
        points_columns: Annotated[
            str | None, typer.Option(help="Other column names in it: image=FRAME,point=BODYPART,x=...,y=...")
        ] = None,
        points_scale: Annotated[
            str | None,
            typer.Option(help="What makes its coordinates pixels: 2, 1/2, 2,1.5 (x,y), normalized or percent."),
        ] = None,
        product: Annotated[list[str] | None, typer.Option(help="NAME=[SLOT:]MODULE[+MODULE...][@TYPE].")] = None,
        maps: Annotated[
            bool | None, typer.Option("--maps/--no-maps", help="Also store feature maps (float16).")
        ] = None,
        layers: Annotated[
            list[str] | None, typer.Option(help="Modules or stage indices, commas between: -2,-1.")
        ] = None,
        image_size: Annotated[str | None, typer.Option(help="Model input, H or HxW in pixels.")] = None,
        fit: Annotated[str | None, typer.Option(help="stretch, crop or pad.")] = None,
        decode: Annotated[
            str | None, typer.Option(help="full, or scaled: large JPEG at 1/2, 1/4 or 1/8, sooner, other pixels.")
        ] = None,
        canvas: Annotated[
            str | None,
            typer.Option(help="Fit images to this size, HxW, and encode it in tiles of the model input."),
        ] = None,
        tile_overlap: Annotated[
            int | None, typer.Option(help="Pixels that tiles share; none: an eighth of the tile.")
        ] = None,
        tile_trim: Annotated[
            int | None, typer.Option(help="Border pixels of a tile dropped where another covers them.")
        ] = None,
        tile_blend: Annotated[str | None, typer.Option(help="cosine, average or none.")] = None,
        backend: Annotated[str | None, typer.Option(help="auto, eager, or the format of an artifact.")] = None,
        precision: Annotated[
            str | None, typer.Option(help="float32, tf32, bfloat16 or float16; part of what the run means.")
        ] = None,
        compile: Annotated[bool | None, typer.Option("--compile/--no-compile", help="Compile an eager model.")] = None,
        trust: Trust = False,
        shard_rows: Annotated[int | None, typer.Option(help="Images per shard.")] = None,
        batch_size: Annotated[str | None, typer.Option(help="Images (with --canvas: tiles) per call, or auto.")] = None,
        device: Annotated[str | None, typer.Option(help="auto, cpu or cuda:N.")] = None,
        dtype: Annotated[str | None, typer.Option(help="float32 or float16, for vectors.")] = None,
        image_column: Annotated[str | None, typer.Option(help="The list's column of image paths.")] = None,
        limit: Annotated[int | None, typer.Option(help="Only the first N images.")] = None,
        max_failures: Annotated[str | None, typer.Option(help="Unreadable images allowed per shard: 12 or 5%.")] = None,
        decode_threads: Annotated[int | None, typer.Option(help="Decoding threads.")] = None,
        image_timeout: Annotated[float | None, typer.Option(help="Seconds an image may take.")] = None,
        max_megapixels: Annotated[float | None, typer.Option(help="Largest image, in millions of pixels.")] = None,
        accept_changed: AcceptChanged = False,
        config: Annotated[
            Path | None,
            typer.Option(help="A TOML file of these options, images too; flags override it, its paths start at it."),
        ] = None,
        json: Annotated[bool | None, typer.Option("--json/--no-json", help="Print one JSON document.")] = None,
        plain: Annotated[
            bool | None, typer.Option("--plain/--no-plain", help="Without Prefect: the same run folder and bytes.")
        ] = None,
    ) -> None:
        """Turn images into features in a run folder; the same command again continues it.

        Exit codes: 0 all rows stored, 3 some images unreadable (listed), 1 failed, 2 wrong usage, 130 stopped.
        """
        flags = {
            "images": images,
            "model": model,
            "out": out,
            "weights": weights,
            "weights_key": weights_key,
            "mean": mean,
            "std": std,
            "models": tuple(models) if models else None,
            "output_shape": output_shape,
            "points": points,
            "points_columns": points_columns,
            "points_scale": points_scale,
            "products": tuple(product) if product else None,
            "maps": maps,
            "image_size": image_size,
            "fit": fit,
            "decode": decode,
            "canvas": canvas,
            "tile_overlap": tile_overlap,
            "tile_trim": tile_trim,
            "tile_blend": tile_blend,
            "backend": backend,
            "precision": precision,
            "compile": compile,
            "trust": trust or None,
            "shard_rows": shard_rows,
            "device": device,
            "dtype": dtype,
            "image_column": image_column,
            "limit": limit,
            "max_failures": max_failures,
            "decode_threads": decode_threads,
            "image_timeout": image_timeout,
            "max_megapixels": max_megapixels,
            "accept_changed": accept_changed or None,
        }
        with output.errors_as_words(as_json=bool(json)):
            from genenc_core.cli import options

            options.refuse_more_images(images, context.args)
            flags |= {"layers": options.layers(layers), "batch_size": options.batch_size(batch_size)}
            values = options.merged(config, flags | {"plain": plain, "json": json})
            who, as_json = runner(values.pop("plain")), values.pop("json")
        with output.errors_as_words(as_json=as_json), who.session():
            from genenc_core.cli import extraction

            raise typer.Exit(extraction.extract(values, who, as_json=as_json))

    @app.command(short_help="Continue a run from its folder alone.")
    def resume(
        run: RunArgument,
        shards: Annotated[
            str,
            typer.Option(
                help="pending, failed, numbers such as 0,3-7, or unreadable: images recorded as unreadable are tried "
                "again (unreadable:5,17-20 only these rows)."
            ),
        ] = "pending",
        device: Annotated[str | None, typer.Option(help="auto, cpu or cuda:N; none: the run's own.")] = None,
        batch_size: Annotated[int | None, typer.Option(help="Images per call; none: the run's own.", min=1)] = None,
        max_failures: Annotated[str | None, typer.Option(help="12, 5% or 0.05; none: the run's own.")] = None,
        accept_changed: AcceptChanged = False,
        trust: Trust = False,
        json: Json = False,
        plain: Plain = False,
    ) -> None:
        """Continue a run from its folder alone: encode what is not committed, or try unreadable images again."""
        who = runner(plain)
        with output.errors_as_words(as_json=json), who.session():
            from genenc_core.cli import extraction

            more = extraction.ResumeOptions(
                device=device,
                batch_size=batch_size,
                max_failures=max_failures,
                trust=trust,
                accept_changed=accept_changed,
            )
            raise typer.Exit(extraction.resume(run, shards, more, who, as_json=json))

    reading.add_to(app)
    benchmark.add_to(app, flows)
    return app
