"""Encoders of every family through `genenc export` and `genenc extract`, each in a separate process, as one table.

Run: python tests/benchmarks/encoders.py [--only TEXT] [--json FILE] [--readme genenc_core/export/README.md]
Weights are random (seed 0). `export` is the wall time of the export alone, `error` the largest relative difference
between artifact and eager model, `memory` the highest resident size of the exporting process, which holds torch, the
eager model, the artifact and the batch that they are compared on, but not the C++ compiler that it starts. The artifact
then encodes three drawn images, and the stored arrays are checked for their shape and for finite values.
"""

import argparse
import dataclasses
import datetime
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

import pictures

MARKS = ("<!-- encoders: begin -->\n", "<!-- encoders: end -->")
MODEL_FILES = {
    "unet.toml": """
task = "segmentation"
backbone = "timm_resnet18"
decoder = "UNetDecoder"
decoder_channels = [256, 128, 64, 32, 16]
num_classes = 4
outputs = ["logits", "decoder"]
""",
    "classifier.toml": """
task = "classification"
backbone = "timm_convnext_atto"
decoder = "IdentityDecoder"
num_classes = 10
outputs = ["logits", "backbone"]
""",
    "upernet_vit.toml": """
task = "segmentation"
backbone = "timm_vit_tiny_patch16_224"
backbone_out_indices = [2, 5, 8, 11]
necks = [{ name = "LearnedInterpolateToPyramidal" }]
decoder = "UperNetDecoder"
decoder_channels = 64
num_classes = 4
""",
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One row: a model, the usual name of its source, and further options of `genenc export`."""

    model: str
    source: str
    options: str = ""
    format: str = "torchscript"

    @property
    def command(self) -> str:
        """Return the command as typed, without the output folder."""
        words = f"genenc export {self.model} --weights random:0 --formats {self.format} {self.options}"
        return words.strip()


SMALL = "--batch-max 4"
CASES = (
    Case(model="resnet18", source="torchvision", options=SMALL),
    Case(model="resnet18", source="torchvision", options=SMALL, format="aotinductor"),
    Case(model="resnet18", source="torchvision", options=SMALL, format="exported_program"),
    Case(model="resnet18", source="torchvision", options=SMALL, format="onnx"),
    Case(model="resnet50", source="torchvision", options=f"{SMALL} --layers layer2,layer3,layer4"),
    Case(model="convnext_tiny", source="torchvision", options=SMALL),
    Case(model="convnext_tiny", source="torchvision", options=SMALL, format="aotinductor"),
    Case(model="convnext_base", source="torchvision", options=SMALL),
    Case(model="efficientnet_b0", source="torchvision", options=SMALL),
    Case(model="densenet121", source="torchvision", options=SMALL),
    Case(model="mobilenet_v3_small", source="torchvision", options=f"{SMALL} --dynamic-size"),
    Case(model="regnet_y_400mf", source="torchvision", options=SMALL),
    Case(model="swin_t", source="torchvision", options=SMALL),
    Case(model="maxvit_t", source="torchvision", options=SMALL),
    Case(model="vit_b_16", source="torchvision", options=SMALL),
    Case(model="timm/vit_tiny_patch16_224", source="timm", options=SMALL, format="onnx"),
    Case(model="timm/vit_small_patch16_224", source="timm", options=f"{SMALL} --layers -4,-1"),
    Case(model="timm/vit_small_patch14_reg4_dinov2", source="timm", options="--batch-max 1"),
    Case(model="timm/eva02_tiny_patch14_224", source="timm", options=SMALL),
    Case(model="timm/deit_tiny_distilled_patch16_224", source="timm", options=SMALL),
    Case(model="timm/convnextv2_tiny", source="timm", options=SMALL),
    Case(model="timm/efficientvit_b1", source="timm", options=SMALL),
    Case(model="timm/mixer_s32_224", source="timm", options=SMALL),
    Case(model="timm/hiera_tiny_224", source="timm", options=SMALL),
    Case(model="samvit_base", source="genenc (SAM)", options="--batch-max 1"),
    Case(model="samvit_large", source="genenc (SAM)", options="--batch-max 1 --image-size 512"),
    Case(model="samvit_huge", source="genenc (SAM)", options="--batch-max 1 --image-size 256"),
    Case(model="deepseek_sam", source="genenc (DeepSeek-OCR)", options="--batch-max 1 --image-size 640"),
    Case(model="darknet53_maps", source="genenc (YOLO-style)", options=SMALL),
    Case(model="cspdarknet53_maps", source="genenc (YOLO-style)", options=SMALL),
    Case(model="darknet53_fpn", source="genenc (YOLO-style)", options=SMALL),
    Case(model="unet.toml", source="factory", options=SMALL),
    Case(model="classifier.toml", source="factory", options=SMALL),
    Case(model="upernet_vit.toml", source="factory", options=SMALL),
    Case(model="yolov3_tiny", source="genenc (YOLO-style)", options=SMALL),
    Case(model="resnet34", source="torchvision", options="--variants 1,4"),
    Case(model="tiny_models:two_maps", source="own module", options=f"{SMALL} --image-size 64"),
)


def main() -> None:
    """Export and extract every case, write the results, and update the README's table if requested."""
    arguments = parsed()
    path = Path(arguments.json)
    known = json.loads(path.read_text()) if path.is_file() else {"rows": {}}
    for case in CASES:
        if arguments.only and arguments.only not in case.command:
            continue
        if arguments.missing and "error" not in known["rows"].get(case.command, {"error": "not run"}):
            continue
        sys.stderr.write(f"{case.command}\n")
        known["rows"][case.command] = measured(case)
        known["machine"] = machine()
        path.write_text(json.dumps(known, indent=1) + "\n")
    table = markdown(known)
    sys.stdout.write(table)
    if arguments.readme:
        readme = Path(arguments.readme)
        text = readme.read_text(encoding="utf-8")
        begin, end = text.index(MARKS[0]) + len(MARKS[0]), text.index(MARKS[1])
        readme.write_text(text[:begin] + table + text[end:], encoding="utf-8")
    if any("error" in row for row in known["rows"].values()):
        sys.exit(1)


def parsed() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cases whose command holds this text")
    parser.add_argument("--missing", action="store_true", help="only cases that the results file lacks or that failed")
    parser.add_argument("--json", default=str(Path(__file__).with_suffix(".json")), help="the results file")
    parser.add_argument("--readme", help="write the table between the marks in this file")
    return parser.parse_args()


def measured(case: Case) -> dict[str, Any]:
    """Export and extract one case; return its row, or `{"error": ...}`."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, text in MODEL_FILES.items():
            (folder / file).write_text(text)
        photos = pictures.write_folder(folder / "photos", 3, sizes=((320, 240), (240, 320)))
        began = time.perf_counter()
        code, out, peak = ran([*shlex.split(case.command), "--out", "model", "--json", "--plain"], folder)
        if code:
            return {"error": out[-400:]}
        (done,) = json.loads(out)
        seconds = time.perf_counter() - began
        extract = ["genenc", "extract", str(photos), "--model", done["spec"], "--out", "run", "--maps"]
        code, out, _ = ran([*extract, "--batch-size", str(batch(done)), "--json", "--plain"], folder)
        if code:
            return {"error": out[-400:]}
        stored = checked(folder / "run" / "features.zarr")
    block = done["model_spec"]["genenc"]
    return {
        "source": case.source,
        "format": case.format,
        "parameters": block["parameters"],
        "input": done["model_spec"]["inputs"][0]["shape"],
        "slots": {slot["name"]: slot["shape"] for slot in done["model_spec"]["outputs"]},
        "stored": stored,
        "export_seconds": block["artifact"]["seconds"],
        "command_seconds": round(seconds, 1),
        "max_rel_error": block["artifact"]["max_rel_error"],
        "peak_bytes": peak,
        "artifact_bytes": block["artifact"]["bytes"],
    }


def batch(done: dict[str, Any]) -> int:
    """Return a batch size that the artifact accepts."""
    mode = done["model_spec"]["batch_mode"]
    return int(mode["fixed"] if "fixed" in mode else min(2, mode["dynamic"]["max"]))


def ran(command: list[str], folder: Path) -> tuple[int, str, int]:
    """Run a command with this interpreter's genenc; return its exit code, its output, and its peak memory in bytes."""
    support = str(Path(__file__).parents[1] / "support")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([support, os.environ.get("PYTHONPATH", "")])}
    words = [sys.executable, "-P", "-c", "from genenc_flows.entry import main; main()", *command[1:]]
    out = folder / "out.txt"
    with out.open("w") as file, (folder / "err.txt").open("w") as errors:
        process = subprocess.Popen(words, cwd=folder, env=environment, stdout=file, stderr=errors)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    said = out.read_text() if process.returncode == 0 else out.read_text() + (folder / "err.txt").read_text()
    return process.returncode, said, usage.ru_maxrss * 1024


def checked(path: Path) -> dict[str, list[int]]:
    """Return the stored products' shapes without the image axis; every value must be finite."""
    group = zarr.open_group(path, mode="r")
    found = {}
    for name, array in group.arrays():
        if not (name.startswith(("features", "maps", "cls")) and isinstance(array, zarr.Array)):
            continue
        values = np.asarray(array[:])
        if values.shape[0] != 3 or not np.isfinite(values.astype(np.float32)).all():
            raise SystemExit(f"{name}: {values.shape}, not all finite")
        found[name] = list(values.shape[1:])
    if not found:
        raise SystemExit("nothing was stored")
    return found


def machine() -> str:
    """Return the machine and date of the measurement."""
    return (
        f"{os.cpu_count()} cores ({platform.machine()}), load {os.getloadavg()[0]:.1f}, Python "
        f"{platform.python_version()}, torch {torch.__version__}, {datetime.date.today().isoformat()}"
    )


def markdown(known: dict[str, Any]) -> str:
    """Format the results as a table."""
    lines = [
        f"Measured by `python tests/benchmarks/encoders.py` on {known.get('machine', 'nothing yet')}.\n",
        "| model | source | command | slots | export | error | memory |",
        "|---|---|---|---|---|---|---|",
    ]
    for case in CASES:
        row = known["rows"].get(case.command)
        if row is None:
            continue
        if "error" in row:
            lines.append(f"| {case.model} | {case.source} | `{case.command}` | failed: {row['error'][:80]} | | | |")
            continue
        size = "x".join(map(str, row["input"][1:]))
        slots = "; ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in row["slots"].items())
        short = re.sub(r"^genenc export ", "", case.command.replace(" --weights random:0", ""))
        lines.append(
            f"| {case.model} | {case.source} | `{short}` | {size} → {slots} | {row['export_seconds']:.1f} s "
            f"| {row['max_rel_error']:.1e} | {row['peak_bytes'] / 2**30:.1f} GiB |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
