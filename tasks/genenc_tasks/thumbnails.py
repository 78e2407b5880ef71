"""Thumbnails of unreadable images, drawn in a process of its own: such files may crash or hang a decoder."""

import base64
import io
import json
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Final, Literal

from PIL import Image, ImageFile

from genenc_core import text
from genenc_core.run.folder import RunFolder
from genenc_core.system import processes

MOST: Final = 12
PIXELS: Final = 96
SECONDS: Final = 20
ADDRESS_SPACE: Final = 4 << 30


def markdown(run: RunFolder, unreadable: Sequence[Mapping[str, object]]) -> str:
    """Return the first unreadable images of which something can be drawn, as a Markdown table; empty if there is none.

    Args:
        run: the run folder.
        unreadable: `row`, `image_id` and `reason` of each image.
    """
    rows = {int(str(item["row"])): item for item in unreadable[:MOST]}
    paths = {row: run.manifest.read(row, row + 1).paths[0] for row in rows}
    drawn = _drawn(list(paths.values()))
    lines = [
        f"| {_cell(rows[row]['image_id'])} | {_cell(rows[row]['reason'])} | ![]({drawn[path]}) |"
        for row, path in paths.items()
        if path in drawn
    ]
    return "\n".join(["| image | reason | what can be drawn |", "|---|---|---|", *lines]) if lines else ""


def _cell(value: object) -> str:
    return text.markdown(str(value))


def _drawn(paths: Sequence[str]) -> dict[str, str]:
    """Return data URLs by path, of what was drawn before the child ended or its time was over."""
    try:
        out = subprocess.run(
            processes.command("-m", __name__),
            input=json.dumps(paths).encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=processes.environment(),
            timeout=SECONDS,
            check=False,
        ).stdout
    except subprocess.TimeoutExpired as late:
        out = late.stdout or b""
    whole = [line for line in out.splitlines(keepends=True) if line.endswith(b"\n")]
    return {paths[at]: drawn for at, drawn in map(json.loads, whole)}


def url(picture: Image.Image, form: Literal["PNG", "JPEG"] = "PNG") -> str:
    """Return a picture in a data URL, which Prefect's pages show."""
    buffer = io.BytesIO()
    picture.save(buffer, form, optimize=True)
    return f"data:image/{form.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def main() -> None:
    """Read paths from standard input; write `[index, data URL]` for each image of which something can be decoded."""
    paths = json.load(sys.stdin)
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    ImageFile.LOAD_TRUNCATED_IMAGES = True
    for at, path in enumerate(paths):
        try:
            with Image.open(path) as image:
                image.draft("RGB", (PIXELS, PIXELS))
                image.thumbnail((PIXELS, PIXELS))
                drawn = url(image.convert("RGB"))
        except Exception:  # decoders may raise anything
            continue
        sys.stdout.write(json.dumps([at, drawn]) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
