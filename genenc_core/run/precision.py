"""Description of a run's precision from its folder; does not import torch."""

from genenc_core import text
from genenc_core.run import records
from genenc_core.run.folder import RunFolder

RECORD = "provenance/precision.json"


def describe(folder: RunFolder) -> str | None:
    """Describe the run's precision and its measured error; None for plain float32."""
    if not folder.execution.identity():
        return None
    computed = folder.execution.describe()
    if folder.objects.size(RECORD) is None:
        return f"{computed}; not yet compared with float32"
    record = records.read_json(folder.objects, RECORD)
    relative_errors = record.get("relative_error")
    return (
        f"{computed}; against float32 {describe_difference(relative_errors)} of {record.get('images')} images"
        if relative_errors
        else computed
    )


def describe_difference(relative_errors: object) -> str:
    """Describe the recorded errors of every slot."""
    try:
        return ", ".join(
            f"{text.printable(str(slot))} differs by {float(item['mean']):.2g} (largest {float(item['largest']):.2g})"
            for slot, item in relative_errors.items()  # type: ignore[attr-defined]
        )
    except (AttributeError, KeyError, TypeError, ValueError):
        return "the record is damaged"
