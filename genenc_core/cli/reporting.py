"""What the commands `report` and `preview` do and say."""

from typing import Any

from genenc_core import text
from genenc_core.cli import extraction, output
from genenc_core.images.load import decode_server
from genenc_core.report import plots, report_file
from genenc_core.report import preview as previewing
from genenc_core.report import report as reporting
from genenc_core.report.parameters import PreviewParameters, ReportParameters


def report(values: dict[str, Any], *, as_json: bool) -> int:
    """Write a report; return the exit code."""
    decode_server.prepare()
    given = ReportParameters.model_validate(values)
    plots.require()
    path = report_file.check(given)

    def done(made: reporting.Report) -> int:
        report_file.write(made.html, path)
        if as_json:
            output.say_json({**made.as_json(), "written": str(path)})
        else:
            output.say([*made.lines(), f"written: {path} ({text.size(len(made.html.encode()))})"])
        return 0

    return extraction.watch(lambda: reporting.make(given), done, state=lambda: "nothing was written", as_json=as_json)


def preview(values: dict[str, Any], *, as_json: bool) -> int:
    """Write the pictures of an image; return the exit code."""
    decode_server.prepare()
    given = PreviewParameters.model_validate(values)
    folder = previewing.check_folder(given)

    def done(made: previewing.Preview) -> int:
        paths = [str(path) for path in previewing.write(made, folder)]
        if as_json:
            output.say_json({"row": made.row, "image": made.image, "notes": made.notes, "written": paths})
        else:
            output.say([f"row {made.row}: {made.image}", *made.notes, *(f"written: {path}" for path in paths)])
        return 0

    return extraction.watch(lambda: previewing.make(given), done, state=lambda: "nothing was written", as_json=as_json)
