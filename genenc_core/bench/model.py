"""The suite `model`: genenc's engine on decoded batches, next to the same artifact on tensors in memory."""

from genenc_core.bench.measure import Way, compare, prepare
from genenc_core.bench.records import Options, Row, Table

WAYS = "genenc_core.bench.model_ways"
MODELS = ("resnet18", "resnet50", "convnext_tiny")
BATCH = 8


def run(options: Options) -> list[Table]:
    """Measure every model eager and as an artifact."""
    rows: list[Row] = []
    for model in MODELS[: options.pick(3, 2)]:
        for form in ("eager", "torchscript", *(["aotinductor"] if options.compiled else [])):
            rows += _pair(options, model, form)
    return [
        Table(
            name="model",
            title="Encoders",
            settings=f"Batches of {BATCH} at 224 x 224, random weights. The bare forward has its tensors in memory "
            "and keeps nothing; the engine takes decoded bytes and gives vectors on the host.",
            baselines=("bare forward",),
            rows=tuple(rows),
        )
    ]


def _pair(options: Options, model: str, form: str) -> list[Row]:
    given = {"model": artifact(options, model, form), "batch": BATCH, "batches": options.pick(4, 2)}
    group = f"{model}, {form}"
    ways = [
        Way(name="bare forward", group=group, program=f"{WAYS}:bare", arguments=given),
        Way(name="genenc's engine", group=group, program=f"{WAYS}:engine_alone", arguments=given),
    ]
    return compare(ways, options)


def artifact(options: Options, model: str, form: str) -> str:
    """Return what names a model in a form: its name, or the spec of an artifact that is written now."""
    if form == "eager":
        return model
    out = options.folder / f"{model}-{form}"
    options.tell(f"exporting {model} as {form}")
    given = {"model": model, "form": form, "out": str(out)}
    prepare(Way(name=form, program=f"{WAYS}:exporting", arguments=given), options)
    return str(next(out.glob("*_spec.json")))
