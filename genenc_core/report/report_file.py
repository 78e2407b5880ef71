"""The file of a report: where it may be written, and writing it."""

from pathlib import Path

from genenc_core import errors
from genenc_core.report import page, subject
from genenc_core.report.parameters import ReportParameters
from genenc_core.store.backends.objects import is_remote
from genenc_core.system import files


def check(given: ReportParameters) -> Path:
    """Return the file to write.

    Raises:
        InputError: it is in the run or dataset, or there is something else than a report.
    """
    shown = f"--out {given.file!r}"
    if is_remote(given.file):
        raise errors.InputError(f"{shown} is not a local file: write it beside you, and copy it")
    path = Path(given.file)
    if path.suffix.lower() not in (".html", ".htm"):
        raise errors.InputError(f"{shown} is no .html file: give one, such as {str(path.with_suffix('.html'))!r}")
    subject.refuse_inside(path, given.source)
    if path.is_dir() or (path.exists() and not path.is_file()):
        raise errors.InputError(f"{shown} is not a file: give another name")
    if path.exists() and not _is_report(path):
        raise errors.InputError(f"{shown} is there and is no report of genenc: give another name, or remove it")
    if not path.parent.is_dir():
        raise errors.InputError(f"{shown} cannot be written: there is no folder {str(path.parent)!r}; make it")
    return path


def _is_report(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return page.MARK.encode() in file.read(4096)
    except OSError:
        return False


def write(html: str, path: Path) -> None:
    """Write the page, or replace an earlier one.

    Raises:
        InputError: it cannot be written.
    """
    try:
        files.replace(path, lambda partial: files.write_new(partial, html.encode()))
    except OSError as error:
        raise errors.InputError(
            f"--out {str(path)!r} cannot be written: {error.strerror or error}; give another place"
        ) from error
