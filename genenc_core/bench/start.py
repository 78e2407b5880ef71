"""The suite `start`: start-up time of the command, compared to importing torch and building the model."""

from genenc_core.bench import images
from genenc_core.bench.measure import Way, compare
from genenc_core.bench.report import Options, Row, Table
from genenc_core.system import processes

WAYS = "genenc_core.bench.start_ways"
MODEL = "resnet18"
FLOOR = f"import torch, torchvision; torchvision.models.{MODEL}()"


def run(options: Options) -> list[Table]:
    """Measure complete commands, each in a new process."""
    if options.flows is None:
        rows: tuple[Row, ...] = (Row(name="genenc", note="flows are not available in this command line"),)
    else:
        rows = tuple(compare(_ways(options, options.flows.partition(":")[0]), options))
    return [
        Table(
            name="start",
            title="Start-up",
            unit="call",
            settings=f"Complete commands; `extract` stores one image with {MODEL} and random weights.",
            baselines=("import torch, build the model",),
            rows=rows,
        )
    ]


def _ways(options: Options, program: str) -> list[Way]:
    photo = str(images.draw(options.folder / "photo", 1))
    genenc = processes.command("-m", program)
    extract = [*genenc, "extract", photo, "--model", MODEL, "--weights", "random:0", "--out"]
    out = str(options.folder / "run")
    commands: list[tuple[str, list[str], str | None]] = [
        ("genenc --help", [*genenc, "--help"], None),
        ("import torch, build the model", processes.command("-c", FLOOR), None),
        ("genenc extract --plain", [*extract, f"{out}-plain", "--plain"], f"{out}-plain"),
        ("genenc extract (Prefect)", [*extract, f"{out}-flow"], f"{out}-flow"),
    ]
    return [
        Way(name=name, program=f"{WAYS}:command", arguments={"line": line, "removed": removed})
        for name, line, removed in commands
    ]
