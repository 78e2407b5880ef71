"""What can be drawn of unreadable images, in a process of its own: such files may crash or hang a decoder."""

import base64
import hashlib
import io
import json
import re
import resource
import subprocess
import sys
from collections.abc import Sequence
from typing import Final, Literal

from PIL import Image, ImageFile

from genenc_core.system import processes

PIXELS: Final = 96
SECONDS: Final = 20
ADDRESS_SPACE: Final = 4 << 30
_URL: Final = re.compile(r"data:image/png;base64,[A-Za-z0-9+/]+={0,2}")


def drawn(paths: Sequence[str], digests: Sequence[str] = ()) -> dict[str, str]:
    """Return data URLs by path, of what was drawn before the child ended or its time was over.

    Args:
        paths: the files.
        digests: sha256 that they must have, in hexadecimal; "" for any.
    """
    asked = [[path, digests[at] if at < len(digests) else ""] for at, path in enumerate(paths)]
    try:
        out = subprocess.run(
            processes.command("-m", __name__),
            input=json.dumps(asked).encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=processes.environment(),
            timeout=SECONDS,
            check=False,
        ).stdout
    except subprocess.TimeoutExpired as late:
        out = late.stdout or b""
    whole = [line for line in out.splitlines(keepends=True) if line.endswith(b"\n")]
    return {paths[at]: made for at, made in map(json.loads, whole) if _URL.fullmatch(made)}


def url(picture: Image.Image, form: Literal["PNG", "JPEG"] = "PNG", **options: int) -> str:
    """Return a picture in a data URL; `options` are those of Pillow's `save`."""
    buffer = io.BytesIO()
    picture.save(buffer, form, optimize=True, **options)
    return f"data:image/{form.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def main() -> None:
    """Read paths and digests from standard input; write `[index, data URL]` for each image that can be drawn."""
    asked = json.load(sys.stdin)
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    ImageFile.LOAD_TRUNCATED_IMAGES = True
    for at, (path, digest) in enumerate(asked):
        try:
            if digest and _sha256(path) != digest:
                continue
            with Image.open(path) as image:
                image.draft("RGB", (PIXELS, PIXELS))
                image.thumbnail((PIXELS, PIXELS))
                made = url(image.convert("RGB"))
        except Exception:  # decoders may raise anything
            continue
        sys.stdout.write(json.dumps([at, made]) + "\n")
        sys.stdout.flush()


def _sha256(path: str) -> str:
    with open(path, "rb") as file:  # noqa: PTH123
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    main()
