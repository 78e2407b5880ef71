"""Memory and time of decoding one large image, in a process of its own: python tests/fuzz/large_image.py PNG RGB 20000.

Prints height, width, bytes a pixel at the peak (the file itself not counted), and seconds of CPU time.
"""

import io
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

from genenc_core.images.decode import decode


def encoded(kind: str, mode: str, side: int) -> bytearray:
    """Return a drawn square image as a file; the kind `PROGRESSIVE` is a JPEG."""
    Image.MAX_IMAGE_PIXELS = None
    row = (np.arange(side * 3) // 7 % 251).astype(np.uint8).reshape(1, side, 3)
    if mode == "I;16":
        image = Image.fromarray(np.repeat((np.arange(side) * 9 % 60000).astype(np.uint16)[None], side, axis=0))
    else:
        image = Image.fromarray(np.repeat(row, side, axis=0)).convert(mode)
    file = io.BytesIO()
    if kind in ("JPEG", "PROGRESSIVE"):
        image.save(file, "JPEG", quality=90, progressive=kind == "PROGRESSIVE")
    else:
        image.save(file, kind, **({"compress_level": 1} if kind == "PNG" else {}))
    return bytearray(file.getbuffer())


def status(key: str) -> int:
    """Return a figure of this process in KiB."""
    return int(
        next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key)).split()[1]
    )


def main(kind: str, mode: str, side: int) -> None:
    """Encode, forget the peak so far, decode, tell."""
    data = encoded(kind, mode, side)
    Path("/proc/self/clear_refs").write_text("5")
    before, cpu = status("VmRSS"), time.process_time()
    _three, height, width = decode.decode_image(data).pixels.shape
    peak, seconds = status("VmHWM") - before, time.process_time() - cpu
    sys.stdout.write(f"{height} {width} {peak * 1024 / side / side:.2f} {seconds:.1f}\n")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
