"""How far the features of an encoder differ between ways to compute them, for eight encoders, as a page of tables.

Run: python tests/benchmarks/tolerance.py [--only TEXT] [--json FILE] [--write genenc_core/TOLERANCE.md]
Weights are random (seed 0), images drawn, saved as JPEGs of 1024 x 768. The base of each comparison is the eager model
in float32, a batch of one, one thread, all instructions of the CPU. It ends with exit code 1 if a difference is above
the bound that the product enforces or the page states.
"""

import argparse
import dataclasses
import datetime
import inspect
import io
import json
import os
import platform
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

import torch
from PIL import Image
from torch import nn

import encoders
import pictures
from genenc_core.export import exporter
from genenc_core.images.decode import decode, geometry
from genenc_core.models import resolve
from genenc_core.run import accuracy
from genenc_core.runtime import backends
from genenc_core.runtime.execution import Execution
from genenc_core.spec import Preprocessing

PAGE = Path(__file__).parents[2] / "genenc_core" / "TOLERANCE.md"
MARKS = ("<!-- tolerance: begin -->\n", "<!-- tolerance: end -->")
IMAGES = 8
EXPORT = float(inspect.signature(exporter.export_encoder).parameters["tolerance"].default)
"""Difference, relative to the largest value, above which an export is refused."""
ROUNDING = 1e-5
"""Likewise, that the page states for float32 anywhere: batch sizes, threads, instructions."""
HALF = accuracy.FAR
"""Difference, relative to the norm of an image's features, above which a run in reduced precision warns."""
ENCODERS = {
    "ViT-S/16": ("timm/vit_small_patch16_224", None),
    "ResNet-18": ("resnet18", None),
    "ConvNeXt-T": ("convnext_tiny", None),
    "Swin-T": ("swin_t", None),
    "SAM ViT-B": ("samvit_base", (128, 128)),
    "YOLO (CSP)": ("cspdarknet53_maps", (192, 192)),
    "DeepSeek": ("deepseek_sam", (128, 128)),
    "factory": ("unet.toml", None),
}
"""Column of the tables -> the model, and the size of its images where it is not its own."""
INSTRUCTIONS = {
    "AVX2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "none": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
}
"""What limits the instructions of torch, oneDNN and MKL."""


@dataclasses.dataclass(frozen=True, slots=True)
class Way:
    """One row of the tables: how it is called, what bounds it, and which figure."""

    words: str
    bound: float | None
    figure: str = "relative"


WAYS = {
    "batch": Way("batches of 2, 4, 8", ROUNDING),
    "threads": Way("two threads", ROUNDING),
    "AVX2": Way("AVX2 alone", ROUNDING),
    "none": Way("neither AVX nor AVX2", ROUNDING),
    "compiled": Way("`--compile`", ROUNDING),
    "torchscript": Way("TorchScript", EXPORT),
    "exported_program": Way("exported program", EXPORT),
    "onnx": Way("ONNX", EXPORT),
    "aotinductor": Way("AOTInductor", EXPORT),
    "float64": Way("float64", ROUNDING),
    "bfloat16": Way("`--precision bfloat16`", HALF, "norm"),
    "float16": Way("`--precision float16`", HALF, "norm"),
    "scaled": Way("`--decode scaled`", None),
}
FIGURES = {
    "absolute": "Largest absolute difference",
    "relative": "Largest difference, relative to the largest value",
    "norm": "Norm of the difference, relative to the norm of the image's features, worst image",
    "cosine": "1 - cosine, worst image",
}


def main() -> None:
    """Measure every encoder, write results and page, and fail where a bound is exceeded."""
    warnings.simplefilter("ignore")
    arguments = parsed()
    if arguments.child:
        compute(Path(arguments.child))
        return
    path = Path(arguments.json)
    known = json.loads(path.read_text()) if path.is_file() else {"encoders": {}}
    for label in ENCODERS:
        if arguments.render or (arguments.only and arguments.only not in label):
            continue
        found = known["encoders"].setdefault(label, {})
        left_out = [*arguments.without.split(","), *(found if arguments.missing else ())]
        for way, value in measured(label, left_out, arguments.images):
            found[way] = value
            known["machine"] = machine()
            path.write_text(json.dumps(known, indent=1) + "\n")
    if arguments.write:
        page = Path(arguments.write)
        page.write_text(in_page(page.read_text(encoding="utf-8"), known), encoding="utf-8")
    wrong = list(exceeded(known))
    sys.stdout.write(tables(known) + "".join(f"{line}\n" for line in wrong))
    sys.exit(bool(wrong))


def parsed() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="encoders whose column holds this text")
    parser.add_argument("--missing", action="store_true", help="only what the results file lacks")
    parser.add_argument("--without", default="", help="ways to leave out, comma-separated: compiled,aotinductor")
    parser.add_argument("--images", type=int, default=IMAGES, help="how many")
    parser.add_argument("--render", action="store_true", help="measure nothing: write the page from the results")
    parser.add_argument("--json", default=str(Path(__file__).with_suffix(".json")), help="the results file")
    parser.add_argument("--write", default=str(PAGE), help="the page; empty: none")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args()


def measured(label: str, without: list[str], count: int) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield the figures of one encoder by way; a way that does not work here is left out, and said why."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        built = model(label, folder)
        files = jpegs(count)
        images = pixels(files, built.preprocessing, "full")
        eager = backends.eager_encoder(built)
        base = outputs(eager, images, 1)
        for way, work in ways(label, built, files, images, folder):
            if way in without:
                continue
            try:
                value = work()
            except Exception as error:
                sys.stderr.write(f"{label}, {way}: {type(error).__name__}: {str(error)[:300]}\n")
                continue
            yield way, figures(base, value)


def model(label: str, folder: Path) -> resolve.BuiltEncoder:
    """Build an encoder with random weights; `folder` takes its file, if it has one."""
    name, size = ENCODERS[label]
    if name.endswith(".toml"):
        (folder / name).write_text(encoders.MODEL_FILES[name])
        name = str(folder / name)
    return resolve.build_encoder(resolve.ModelRequest(name=name, weights="random:0", image_size=size))


def ways(
    label: str, built: resolve.BuiltEncoder, files: list[bytes], images: torch.Tensor, folder: Path
) -> Iterator[tuple[str, Callable[[], torch.Tensor]]]:
    """Yield each way, with what computes the features by it."""
    eager = backends.eager_encoder(built)

    def batches() -> torch.Tensor:
        parts = [outputs(eager, images, size) for size in (2, 4, 8)]
        base = outputs(eager, images, 1)
        return max(parts, key=lambda each: float((each - base).abs().max()))

    def two_threads() -> torch.Tensor:
        torch.set_num_threads(2)
        try:
            return outputs(eager, images, len(images))
        finally:
            torch.set_num_threads(1)

    def how(execution: Execution) -> torch.Tensor:
        return outputs(backends.eager_encoder(built, how=execution), images, 4)

    def artifact(kind: Any) -> torch.Tensor:
        (done,) = exporter.export_encoder(built, out=folder / kind, formats=[kind], batch_max=4)
        return outputs(backends.load_encoder(done.spec, device="cpu"), images, 4)

    def double() -> torch.Tensor:
        return in_float64(built.module, images)

    yield "batch", batches
    yield "threads", two_threads
    for name in INSTRUCTIONS:
        yield name, lambda name=name: elsewhere(label, built, images, folder, INSTRUCTIONS[name])
    yield "float64", double
    yield "bfloat16", lambda: how(Execution(precision="bfloat16"))
    yield "float16", lambda: how(Execution(precision="float16"))
    yield "scaled", lambda: outputs(eager, pixels(files, built.preprocessing, "scaled"), 1)
    for kind in ("torchscript", "exported_program", "onnx", "aotinductor"):
        yield kind, lambda kind=kind: artifact(kind)
    yield "compiled", lambda: how(Execution(compile=True))


def outputs(encoder: backends.Encoder, images: torch.Tensor, size: int) -> torch.Tensor:
    """Return the first output for uint8 images, float64 `[n, values]`, in batches of a size."""
    slot = encoder.outputs[0].name
    parts = [encoder((part.float() / 255).contiguous())[slot] for part in images.split(size)]
    return torch.cat([part.double().flatten(1) for part in parts])


def in_float64(module: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Return the first output computed in float64, likewise."""
    wide = module.double()
    try:
        with torch.inference_mode():
            return torch.cat([wide((part.float() / 255).double())[0].flatten(1) for part in images.split(1)])
    finally:
        module.float()


def elsewhere(
    label: str, built: resolve.BuiltEncoder, images: torch.Tensor, folder: Path, environment: dict[str, str]
) -> torch.Tensor:
    """Compute in another process with these variables, with the same weights: random ones depend on the CPU."""
    torch.save((label, built.module.state_dict(), images), folder / "given.pt")
    command = [sys.executable, __file__, "--child", str(folder)]
    subprocess.run(command, env={**os.environ, **environment}, check=True)
    found: torch.Tensor = torch.load(folder / "found.pt")
    return found


def compute(folder: Path) -> None:
    """Compute what `elsewhere` asks for."""
    torch.set_num_threads(1)
    label, state, images = torch.load(folder / "given.pt")
    built = model(label, folder)
    built.module.load_state_dict(state)
    torch.save(outputs(backends.eager_encoder(built), images, 1), folder / "found.pt")


def jpegs(count: int) -> list[bytes]:
    """Return drawn images, smooth ones with a little noise, as JPEGs."""
    found = []
    for seed in range(count):
        smooth = torch.from_numpy(pictures.texture(1024, 768, seed)).float()
        noise = 16 * torch.randn(smooth.shape, generator=torch.Generator().manual_seed(seed))
        file = io.BytesIO()
        Image.fromarray((smooth + noise).clamp(0, 255).byte().numpy()).save(file, "JPEG", quality=90)
        found.append(file.getvalue())
    return found


def pixels(files: list[bytes], size: Preprocessing, how: str) -> torch.Tensor:
    """Decode and fit JPEGs as a run does; return uint8 `[n, 3, H, W]`."""
    fitter = geometry.Fitter(size.model_copy(update={"decode": how}))
    return torch.stack([fitter.fit(decode.decode_image(data, hint=fitter.hint))[0] for data in files])


def figures(base: torch.Tensor, other: torch.Tensor) -> dict[str, float]:
    """Compare features `[n, values]` with those of the base."""
    apart = (other - base).abs()
    unit = [value / value.norm(dim=1, keepdim=True) for value in (base, other)]
    # 1 - cosine of unit vectors is half the squared distance, which keeps its digits near 0.
    return {
        "absolute": float(apart.max()),
        "relative": float(apart.max() / base.abs().max()),
        "norm": float((apart.norm(dim=1) / base.norm(dim=1)).max()),
        "cosine": float(((unit[0] - unit[1]).square().sum(1) / 2).max()),
    }


def exceeded(known: dict[str, Any]) -> Iterator[str]:
    """Yield a line for every figure that is not below its bound."""
    for label, found in known["encoders"].items():
        for name, way in WAYS.items():
            if name in found and way.bound is not None and not found[name][way.figure] <= way.bound:
                yield f"{label}, {way.words}: {found[name][way.figure]:.2g} is above {way.bound:g} ({way.figure})"


def tables(known: dict[str, Any]) -> str:
    """Return one table per figure: a row for each way, a column for each encoder."""
    columns = [label for label in ENCODERS if label in known["encoders"]]
    lines = [f"Measured on {known.get('machine', 'nothing yet')}.", ""]
    for figure, words in FIGURES.items():
        lines += [f"{words}:", "", "| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
        for name, way in WAYS.items():
            cells = [known["encoders"][label].get(name) for label in columns]
            lines.append(f"| {way.words} | " + " | ".join(cell(each, figure) for each in cells) + " |")
        lines.append("")
    return "\n".join(lines[:-1]) + "\n"


def cell(found: dict[str, float] | None, figure: str) -> str:
    """Format one figure; an exact 0 is shown as such."""
    if found is None:
        return "-"
    return f"{found[figure]:.0e}" if found[figure] else "0"


def in_page(page: str, known: dict[str, Any]) -> str:
    """Return the page with the tables between its marks."""
    begin, end = page.index(MARKS[0]) + len(MARKS[0]), page.index(MARKS[1])
    return page[:begin] + tables(known) + page[end:]


def machine() -> str:
    """Return the machine and date of the measurement."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").is_file() else ""
    name = next((line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")), "")
    return (
        f"{name or platform.machine()} ({torch.backends.cpu.get_cpu_capability()}), torch {torch.__version__}, "
        f"{datetime.datetime.now(datetime.UTC).date().isoformat()}"
    )


if __name__ == "__main__":
    main()
