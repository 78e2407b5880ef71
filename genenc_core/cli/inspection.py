"""The `inspect` command: a look at images, labels and cost before a run, as text or JSON."""

from typing import Any

from genenc_core.cli import extraction, output
from genenc_core.images.load import decode_server
from genenc_core.inspection import inspect as inspecting
from genenc_core.inspection.parameters import InspectParameters


def inspect(values: dict[str, Any], *, as_json: bool) -> int:
    """Inspect and print what was found; return the exit code."""
    decode_server.prepare()
    given = InspectParameters.model_validate(values)

    def report(found: inspecting.Inspection) -> int:
        written = [str(path) for path in inspecting.write(found, given.out)] if given.out else []
        if as_json:
            output.say_json({**found.as_json(), "written": written})
        else:
            output.say([*inspecting.lines(found), *(f"written: {path}" for path in written)])
        return found.exit_code

    return extraction.watch(
        lambda: inspecting.inspect(given), report, state=lambda: "nothing was written", as_json=as_json
    )
