"""Check that all sessions of a run decode JPEGs on the GPU to the same pixels, by means of test images."""

from typing import Final

from genenc_core import errors
from genenc_core.images.decode import gpu_decode
from genenc_core.images.load import gpu_check
from genenc_core.run import records
from genenc_core.run.folder import RunFolder

RECORD: Final = "provenance/gpu_pixels.json"


def require(folder: RunFolder, device: str) -> None:
    """Check the device of a run that decodes JPEGs on the GPU; no-op for other runs.

    Raises:
        InputError: not a CUDA device, or it decodes to wrong pixels.
        StoreError: it decodes to other pixels than the device that the run was started with.
    """
    if folder.preprocessing.decode != "gpu":
        return
    gpu_decode.require(device)
    try:
        found = gpu_check.check(folder.preprocessing, device)
    except OSError as error:
        raise errors.InputError(error.strerror or str(error)) from error
    record = {"pixels": found, "device": gpu_decode.describe(device), "found": records.now()}
    first = records.create_json(folder.objects, RECORD, record)
    if first.get("pixels") != found:
        raise errors.StoreError(
            f"{record['device']} decodes JPEGs to other pixels than {first.get('device')}, which this run was started "
            "with: continue on that device, or extract to another --out"
        )
