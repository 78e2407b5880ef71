"""The suite `model`: genenc's engine against the bare model on tensors in memory, and its choice of batch size."""

from collections import Counter
from collections.abc import Iterator

from genenc_core.bench.measure import Way, WayError, compare, prepare
from genenc_core.bench.report import Options, Row, Table

WAYS = "genenc_core.bench.model_ways"
MODELS = ("resnet18", "resnet50", "convnext_tiny")
BATCH = 8
SIZES = (1, 2, 4, 8, 16, 32, 64)
RUN_IMAGES = 10_000


def run(options: Options) -> Iterator[Table]:
    """Measure every model eager and exported, and one model at every batch size."""
    rows: list[Row] = []
    for model in MODELS[: options.pick(3, 2)]:
        for form in ("eager", "torchscript", *(["aotinductor"] if options.compiled else [])):
            rows += _pair(options, model, form)
    yield Table(
        name="model",
        title="Encoders",
        settings=f"Batches of {BATCH} at 224 x 224, random weights. The bare forward has its tensors in memory and "
        "discards the results; the engine takes decoded bytes and returns vectors on the host. On a CPU both reuse the "
        "memory that a batch frees for the next, which a plain loop does not.",
        baselines=("bare forward",),
        rows=tuple(rows),
    )
    yield _batches(options, MODELS[0])


def _batches(options: Options, model: str) -> Table:
    """Measure every batch size, and how often each one is chosen."""
    search = Way(name="search", program=f"{WAYS}:searching", arguments={"model": model, "images": RUN_IMAGES})
    chosen: Counter[int] = Counter()
    for at in range(options.repeats):
        options.tell(f"search {at + 1} of {options.repeats} for a batch size")
        try:
            chosen[int(prepare(search, options))] += 1
        except WayError as error:
            options.tell(f"the search failed: {error}")
    sizes = sorted({*SIZES, *chosen})
    ways = [
        Way(
            name=f"batches of {size}",
            program=f"{WAYS}:engine_alone",
            arguments={"model": model, "batch": size, "batches": max(SIZES[-1] // size, 1)},
            note=f"chosen in {chosen[size]} of {options.repeats} searches" if chosen[size] else "",
        )
        for size in sizes
    ]
    rows = compare(ways, options)
    fastest = min((row for row in rows if row.measured), key=lambda row: row.wall, default=rows[0])
    return Table(
        name="batch",
        title="Choosing the batch size",
        settings=f"{model}, eager, in genenc's engine; each search assumes a run of {RUN_IMAGES:,} images, runs in a "
        "separate process and takes at most ten batches.",
        baselines=(fastest.name,),
        rows=tuple(rows),
    )


def _pair(options: Options, model: str, form: str) -> list[Row]:
    group = f"{model}, {form}"
    try:
        given = {"model": artifact(options, model, form), "batch": BATCH, "batches": options.pick(4, 2)}
    except WayError as error:
        return [Row(name="export", group=group, note=f"failed: {error}")]
    plain = given | {"keep": False}
    ways = [
        Way(name="bare forward", group=group, program=f"{WAYS}:bare", arguments=given),
        Way(name="bare forward, memory not kept", group=group, program=f"{WAYS}:bare", arguments=plain),
        Way(name="genenc's engine", group=group, program=f"{WAYS}:engine_alone", arguments=given),
    ]
    return compare(ways, options)


def artifact(options: Options, model: str, form: str) -> str:
    """Return the model's name if eager, or export it and return the path of the artifact's spec."""
    if form == "eager":
        return model
    out = options.folder / f"{model}-{form}"
    options.tell(f"exporting {model} as {form}")
    given = {"model": model, "form": form, "out": str(out)}
    prepare(Way(name=form, program=f"{WAYS}:exporting", arguments=given), options)
    return str(next(out.glob("*_spec.json")))
