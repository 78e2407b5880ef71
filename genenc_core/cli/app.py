"""The commands of `genenc`; what needs Prefect comes in as a `Runner`, so that the core stays free of it."""

import faulthandler
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, get_args

import typer

from genenc_core import choices, errors, exits
from genenc_core.cli import benchmark, completing, output, reading, usage
from genenc_core.cli.runners import PlainRunner, Runner
from genenc_core.cli.usage import AcceptChanged, Json, Models, Plain, RunArgument, Trust

THE_RUNS = "the run's own"


def run(flows: Runner | None = None) -> None:
    """Run the command line and end the process, also when a second Ctrl-C left threads that cannot be waited for."""
    code: object = 1
    # Until the work sets its own way to stop, a SIGTERM ends the command as a Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # No child process, of ours or of a library, imports from the working directory, which may be a folder of images.
    os.environ["PYTHONSAFEPATH"] = "1"
    output.open_standard_streams()
    faulthandler.enable(all_threads=False)  # a crash says in which line of whose code
    try:
        build_app(flows)()
    except SystemExit as leaving:
        code = leaving.code
    except OSError as error:
        code = output.tell_lost_output(error)
    finally:
        code = output.flushed(code)
        # torch's threads abort an interpreter that shuts down under them.
        # An interpreter that shuts down without memory may crash.
        if code == errors.Stopped.exit_code or output.memory_lacked():
            sys.stdout.flush()
            sys.stderr.flush()
            exits.leave(code if isinstance(code, int) else 1)
    sys.exit(code if isinstance(code, int) else 1)


def build_app(flows: Runner | None = None) -> typer.Typer:
    """Return the command line; without `flows` every command runs plain."""
    completing.prepare()
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
        version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
    ) -> None:
        if version:
            import importlib.metadata

            output.say([importlib.metadata.version("genenc")])
            raise typer.Exit

    def runner(plain: bool) -> Runner:
        return PlainRunner() if plain or flows is None else flows

    @usage.command(
        app,
        short_help="Try it: draw images, export a model, extract, verify.",
        example="genenc demo --out genenc-demo",
        guide="the beginning",
    )
    def demo(
        out: Annotated[Path, usage.option(help="Where to put the demo.", group=usage.STORE)] = Path("genenc-demo"),
        plain: Plain = False,
    ) -> None:
        """Draw a small labelled image set, export a model, extract features and probes, verify, say what lies where."""
        who = runner(plain)
        with output.errors_as_words(), who.session():
            from genenc_core.cli import demo as demo_command

            raise typer.Exit(demo_command.run(out, who))

    @usage.command(
        app,
        short_help="Write a model as an artifact with its RuntimeModelSpec.",
        example="genenc export resnet18 --out models --formats torchscript,onnx",
        guide="Exported models",
    )
    def export(
        model: Annotated[
            str, typer.Argument(help="A model name, package.module:factory, or a .toml/.yaml model file.")
        ],
        out: Annotated[
            str, usage.option(help="Folder for the artifacts and their specs.", group=usage.STORE, metavar="<path>")
        ],
        weights: Annotated[
            str, usage.option(help="pretrained[:TAG], random:SEED, or a file.", group=usage.MODEL)
        ] = "pretrained",
        weights_key: usage.WeightsKey = None,
        layers: usage.Layers = None,
        trust: Trust = False,
        image_size: usage.ImageSize = None,
        dynamic_size: Annotated[
            bool, usage.option("--dynamic-size", help="Take a range of image sizes.", group=usage.SIZES)
        ] = False,
        size_min: Annotated[
            str | None,
            usage.option(
                help="Smallest size of that range.", group=usage.SIZES, default="half of the model's", metavar="<H|HxW>"
            ),
        ] = None,
        size_max: Annotated[
            str | None,
            usage.option(
                help="Largest size of that range.", group=usage.SIZES, default="twice the model's", metavar="<H|HxW>"
            ),
        ] = None,
        formats: Annotated[
            str,
            usage.option(
                help="One artifact each; commas between.",
                group="Artifacts",
                metavar=f"<{'|'.join(get_args(choices.ExportFormat))}>,...",
                values=get_args(choices.ExportFormat),
            ),
        ] = "torchscript",
        batch_min: Annotated[int, usage.option(help="Fewest images per call.", group="Artifacts")] = 1,
        batch_max: Annotated[int, usage.option(help="Most images per call.", group="Artifacts")] = 32,
        variants: Annotated[
            str | None,
            usage.option(
                help="Instead of these bounds, one file per batch size: 1,8,32.", group="Artifacts", metavar="<N,...>"
            ),
        ] = None,
        json: Json = False,
        plain: Plain = False,
    ) -> None:
        """Export a model, compare the artifact with the eager model, and write its RuntimeModelSpec.

        The model's own normalisation goes into the artifact, which takes RGB in [0, 1]; an own module declares its mean
        and std. --mean and --std are for artifacts made elsewhere: give them to genenc extract.
        """
        who = runner(plain)
        with output.errors_as_words(as_json=json), who.session():
            from genenc_core.cli import options
            from genenc_core.run import model_export

            given = model_export.ExportParameters(
                model=model,
                out=out,
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

    @usage.command(
        app,
        short_help="Turn images into features in a run folder, or continue one.",
        example="genenc extract photos/ --model resnet18 --points labels.csv --out run",
        guide="Your images, Points, Products",
        context_settings={"allow_extra_args": True},
    )
    def extract(
        context: typer.Context,
        images: Annotated[str | None, typer.Argument(help="A folder, a quoted glob, or a CSV/Parquet list.")] = None,
        image_column: Annotated[
            str | None,
            usage.option(help="The list's column of image paths.", group=usage.INPUT, metavar="<column>"),
        ] = None,
        limit: Annotated[
            int | None, usage.option(help="Only the first N images.", group=usage.INPUT, default="all images")
        ] = None,
        image_timeout: Annotated[
            float | None, usage.option(help="Seconds an image may take.", group=usage.INPUT, default="60")
        ] = None,
        max_megapixels: Annotated[
            float | None,
            usage.option(help="Largest image, in millions of pixels.", group=usage.INPUT, default="400"),
        ] = None,
        points: Annotated[
            str | None,
            usage.option(
                help="Tidy CSV/Parquet (image,point,x,y) or DeepLabCut CSV.", group=usage.POINTS, metavar="<file>"
            ),
        ] = None,
        points_columns: Annotated[
            str | None,
            usage.option(
                help="Other column names in it: image=FRAME,point=BODYPART,x=...,y=...",
                group=usage.POINTS,
                metavar="<COLUMN=NAME,...>",
            ),
        ] = None,
        points_scale: Annotated[
            str | None,
            usage.option(
                help="What makes its coordinates pixels: 2, 1/2, 2,1.5 (x,y), normalized or percent.",
                group=usage.POINTS,
                default="they are pixels",
                metavar="<S|SX,SY|normalized|percent>",
                values=("normalized", "percent"),
            ),
        ] = None,
        model: Annotated[
            str | None,
            usage.option(
                help="A model name, a spec JSON, or the model_id of one.", group=usage.MODEL, metavar="<name|file>"
            ),
        ] = None,
        weights: Annotated[
            str | None,
            usage.option(
                help="Of a model by name.",
                group=usage.MODEL,
                default="pretrained",
                metavar="<pretrained[:TAG]|random:SEED|file>",
                values=("pretrained", "random:0"),
            ),
        ] = None,
        weights_key: usage.WeightsKey = None,
        mean: Annotated[
            str | None,
            usage.option(
                help="Artifacts: mean of RGB in [0, 1].",
                group=usage.MODEL,
                default="the spec's, else none",
                metavar="<R,G,B|imagenet|clip|half>",
                values=("imagenet", "clip", "half"),
            ),
        ] = None,
        std: Annotated[
            str | None,
            usage.option(
                help="Artifacts: std, as --mean.",
                group=usage.MODEL,
                default="that of --mean by name",
                metavar="<R,G,B|imagenet|clip|half>",
                values=("imagenet", "clip", "half"),
            ),
        ] = None,
        models: Models = None,
        layers: usage.Layers = None,
        output_shape: Annotated[
            str | None,
            usage.option(
                help="general_encoder only: its first output, such as 768,7,7; compared.",
                group=usage.MODEL,
                metavar="<C,H,W>",
            ),
        ] = None,
        backend: Annotated[
            choices.Backend | None,
            usage.option(
                help="What runs the model; auto: a spec's artifact, else eager.", group=usage.MODEL, default="auto"
            ),
        ] = None,
        precision: Annotated[
            choices.Precision | None,
            usage.option(
                help="What an eager model computes in; part of what the run means. tf32: CUDA only.",
                group=usage.MODEL,
                default="float32",
            ),
        ] = None,
        compile: Annotated[
            bool | None,
            usage.option(
                "--compile/--no-compile", help="Compile an eager model.", group=usage.MODEL, default="no-compile"
            ),
        ] = None,
        trust: Trust = False,
        image_size: usage.ImageSize = None,
        fit: Annotated[
            choices.Fit | None,
            usage.option(
                help="How images meet the model's size.",
                group=usage.SIZES,
                default="pad with --points, else the model's own",
            ),
        ] = None,
        decode: Annotated[
            choices.DecodeScale | None,
            usage.option(
                help="scaled: read large JPEG at 1/2, 1/4 or 1/8; faster, slightly other pixels.",
                group=usage.SIZES,
                default="full",
            ),
        ] = None,
        canvas: Annotated[
            str | None,
            usage.option(
                help="Fit images to this size and encode it in tiles of the model input.",
                group=usage.SIZES,
                default="no tiles",
                metavar="<H|HxW>",
            ),
        ] = None,
        tile_overlap: Annotated[
            int | None,
            usage.option(help="Pixels that tiles share.", group=usage.SIZES, default="an eighth of the tile"),
        ] = None,
        tile_trim: Annotated[
            int | None,
            usage.option(
                help="Border pixels of a tile dropped where another covers them.", group=usage.SIZES, default="0"
            ),
        ] = None,
        tile_blend: Annotated[
            choices.Blend | None,
            usage.option(help="How overlapping tiles are weighted.", group=usage.SIZES, default="cosine"),
        ] = None,
        product: Annotated[
            list[str] | None,
            usage.option(
                help="May be repeated.",
                group=usage.PRODUCTS,
                default="features, and probes with --points",
                metavar="<NAME=[SLOT:]MODULE[+MODULE...][@TYPE]>",
            ),
        ] = None,
        maps: Annotated[
            bool | None,
            usage.option(
                "--maps/--no-maps", help="Also store feature maps (float16).", group=usage.PRODUCTS, default="no-maps"
            ),
        ] = None,
        dtype: Annotated[
            choices.StoredType | None,
            usage.option(help="How vectors are stored.", group=usage.PRODUCTS, default="float32"),
        ] = None,
        out: Annotated[
            str | None,
            usage.option(
                help="The run folder to create or continue, or s3://bucket/prefix.",
                group=usage.STORE,
                metavar="<folder>",
            ),
        ] = None,
        shard_rows: Annotated[
            int | None,
            usage.option(
                help="Images per shard.",
                group=usage.STORE,
                default="an eighth of the images, 32 to 256 on a CPU, to 4096 on a GPU",
            ),
        ] = None,
        device: Annotated[
            str | None,
            usage.option(
                help="Where the model runs.",
                group=usage.RUN,
                default="auto",
                metavar=usage.DEVICES,
                values=usage.DEVICE_VALUES,
            ),
        ] = None,
        batch_size: Annotated[
            str | None,
            usage.option(
                help="Images (with --canvas: tiles) per call.",
                group=usage.RUN,
                default="auto",
                metavar="<N|auto>",
                values=("auto",),
            ),
        ] = None,
        decode_workers: Annotated[
            int | None, usage.option(help="Processes that decode images.", group=usage.RUN, default="one per core")
        ] = None,
        max_failures: usage.MaxFailures = None,
        accept_changed: AcceptChanged = False,
        config: Annotated[
            Path | None,
            usage.option(
                help="A TOML file of these options, images too; flags override it, its paths start at it.",
                group=usage.GENERAL,
            ),
        ] = None,
        json: Annotated[
            bool | None,
            usage.option("--json/--no-json", help="Print one JSON document.", group=usage.GENERAL, default="no-json"),
        ] = None,
        plain: Annotated[
            bool | None,
            usage.option(
                "--plain/--no-plain",
                help="Without Prefect: the same run folder and bytes.",
                group=usage.GENERAL,
                default="no-plain",
            ),
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
            "decode_workers": decode_workers,
            "image_timeout": image_timeout,
            "max_megapixels": max_megapixels,
            "accept_changed": accept_changed or None,
        }
        with output.errors_as_words(as_json=bool(json)):
            from genenc_core.cli import options

            as_json = options.wants_json(config) if json is None else json
        with output.errors_as_words(as_json=as_json):
            options.refuse_more_images(images, context.args)
            flags |= {"layers": options.layers(layers), "batch_size": options.batch_size(batch_size)}
            values = options.merged(config, flags | {"plain": plain, "json": json})
            who, as_json = runner(values.pop("plain")), values.pop("json")
        with output.errors_as_words(as_json=as_json), who.session():
            from genenc_core.cli import extraction

            raise typer.Exit(extraction.extract(values, who, as_json=as_json))

    @usage.command(
        app,
        short_help="Continue a run from its folder alone.",
        example="genenc resume run --shards failed",
        guide="Your images, The run folder",
    )
    def resume(
        run: RunArgument,
        shards: Annotated[
            str,
            usage.option(
                help="Numbers such as 0,3-7, or unreadable: images recorded as unreadable are tried again "
                "(unreadable:5,17-20 only these rows).",
                group=usage.RUN,
                metavar="<pending|failed|N,...|unreadable[:ROW,...]>",
                values=("pending", "failed", "unreadable"),
            ),
        ] = "pending",
        device: Annotated[
            str | None,
            usage.option(
                help="Where the model runs.",
                group=usage.RUN,
                default=THE_RUNS,
                metavar=usage.DEVICES,
                values=usage.DEVICE_VALUES,
            ),
        ] = None,
        batch_size: Annotated[
            int | None, usage.option(help="Images per call.", group=usage.RUN, default=THE_RUNS, min=1)
        ] = None,
        max_failures: Annotated[
            str | None,
            usage.option(
                help="Unreadable images allowed per shard: 12, 5% or 0.05.",
                group=usage.RUN,
                default=THE_RUNS,
                metavar="<N|N%>",
            ),
        ] = None,
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
