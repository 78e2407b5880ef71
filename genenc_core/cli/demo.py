"""The `demo` command: an end-to-end extraction on generated images."""

import time
from pathlib import Path
from typing import TYPE_CHECKING

from genenc_core import errors
from genenc_core.cli import demo_data, extraction, output, state
from genenc_core.report import report, report_file
from genenc_core.report.parameters import ReportParameters
from genenc_core.run import model_export, parameters
from genenc_core.text import argument

if TYPE_CHECKING:
    from genenc_core.cli.runners import Runner

MODEL = "resnet18"
SHOWN = "scene_003.jpg"


def run(out: Path, runner: "Runner") -> int:
    """Draw images, export a model, extract, verify and report; list the outputs; return 0 on success."""
    if out.exists() and any(out.iterdir() if out.is_dir() else [out]) and not (out / "points.csv").exists():
        raise errors.InputError(f"--out {str(out)!r} is neither empty nor a demo: give a new folder")
    began = time.perf_counter()
    output.say([f"1/5  drawing 48 labelled scenes, one of them broken, in {out / 'images'}"])
    points = demo_data.draw_dataset(out) if not (out / "points.csv").exists() else out / "points.csv"
    output.say([f"2/5  exporting {MODEL} (random weights) as TorchScript to {out / 'model'}"])
    given = parameters.ExportParameters(model=MODEL, out=str(out / "model"), weights="random:0")
    spec_path = Path(given.out) / f"{MODEL}_torchscript_spec.json"
    # Exports are not reproducible byte for byte, and a run only accepts the artifact it was made with.
    if not spec_path.exists():
        output.say(model_export.summary(runner.export(given)[0]))
    root = out / "run"
    output.say([f"3/5  extracting features, maps and probes to {root}"])
    values = {
        "images": str(out / "images"),
        "model": str(spec_path),
        "points": str(points),
        "out": str(root),
        "maps": True,
        "shard_rows": 16,
    }
    code = extraction.extract(values, runner, as_json=False)
    if code not in (0, 3):
        return code
    output.say(["4/5  verifying every object against its commit record"])
    damaged = state.verify(root, content=True, as_json=False)
    page = out / "report.html"
    output.say([f"5/5  looking at the results: {page}"])
    reported = _report(root, page)
    output.say(_closing(out, root, page if reported else None, time.perf_counter() - began))
    return damaged


def _report(root: Path, page: Path) -> bool:
    """Write the report of the run; return whether it was."""
    given = ReportParameters(source=str(root), out=str(page))
    try:
        path = report_file.check(given)
        report_file.write(report.make(given).html, path)
    except errors.GenencError as error:  # the run is complete without it
        output.say([f"     no report: {error}"])
        return False
    return True


def _closing(out: Path, root: Path, page: Path | None, seconds: float) -> list[str]:
    places = {
        out / "images": "48 drawn photographs; one is truncated, its row holds NaN",
        out / "points.csv": "snout, ears and tail base in pixels",
        out / "model": "the exported model and its RuntimeModelSpec",
        root / "features.zarr": "features [image, channel], probes [image, point, channel], status [image], maps",
        root / "images.parquet": "which row is which file",
        **({} if page is None else {page: "what ran and what it gave: open it in a browser"}),
    }
    width = max(len(str(path)) for path in places)
    return [
        "",
        f"Done in {seconds:.0f} s. Where things are:",
        *(f"  {path!s:<{width}}  {meaning}" for path, meaning in places.items()),
        "",
        "Read it (pip install 'genenc[xarray]'):",
        "  from genenc_core import api",
        f"  arrays = api.open({str(root)!r}).xarray()",
        f"  arrays.probes.sel(image_id={SHOWN!r}, point={demo_data.POINTS[0]!r})",
        "",
        f"Next: genenc search {argument(root)} --row {SHOWN} --point {demo_data.POINTS[0]}    "
        f"genenc status {argument(root)}",
        "Your own images and labels: genenc_core/guides/FIRST_RUN.md",
    ]
