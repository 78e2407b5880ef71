"""What a run folder tells of how its model is computed; read without torch."""

from genenc_core import text
from genenc_core.run import records
from genenc_core.run.folder import RunFolder

RECORD = "provenance/precision.json"


def describe(folder: RunFolder) -> str | None:
    """Return how the run's model is computed and how far off that was measured to be; None for plain float32."""
    if not folder.execution.identity():
        return None
    computed = folder.execution.describe()
    if folder.objects.size(RECORD) is None:
        return f"{computed}; not yet compared with float32"
    record = records.read_json(folder.objects, RECORD)
    told = record.get("relative_error")
    return f"{computed}; against float32 {words(told)} of {record.get('images')} images" if told else computed


def words(told: object) -> str:
    """Return the errors of every slot, as the record has them."""
    try:
        return ", ".join(
            f"{text.printable(str(slot))} differs by {float(item['mean']):.2g} (largest {float(item['largest']):.2g})"
            for slot, item in told.items()  # type: ignore[attr-defined]
        )
    except (AttributeError, KeyError, TypeError, ValueError):
        return "the record is damaged"
