"""Code that a file names: imported at the user's own word only, and remembered once it was given."""

import contextlib
import importlib.machinery
import importlib.util
import json
import os
import sys
from pathlib import Path

from genenc_core import errors

_REMEMBERED = "genenc/trusted-code"
_MODES_OF_OTHERS = 0o022


def code_of(kind: str, name: str, arguments: str | None) -> str | None:
    """Return the dotted path that building a model of this source imports; None when no file outside names code.

    `kind`, `name` and `arguments` are those of `spec.SourceInfo`.
    """
    if kind == "python":
        return name
    if kind != "factory" or arguments is None:
        return None
    backbone = json.loads(arguments).get("backbone")
    return dotted(backbone) if isinstance(backbone, str) else None


def dotted(name: str) -> str | None:
    """Return the `package.module:factory` that a name of a model or a backbone is; None for any other name."""
    return name.removeprefix("python_") if ":" in name else None


def require(code: str | None, *, who: str, trust: bool) -> None:
    """Let a file name code only if the user said so: now, or when the same code was run before.

    Raises:
        InputError: neither; says how.
    """
    if code is None or trust or known(code):
        return
    raise errors.InputError(
        f"{who} names the code {code!r}, which would be imported and run here. If you know that code and who wrote "
        "the file, add --trust; what you name as --model yourself, or trusted once, is remembered and needs it no more"
    )


def known(code: str) -> bool:
    """Tell whether the user ran this code before: the same name, found in the same file; nothing is imported."""
    place = _place(code)
    return place is not None and _line(code, place) in _remembered()


def remember(code: str | None) -> None:
    """Note that the user ran this code, which has been imported; without a place to note it, nothing is noted."""
    module = sys.modules.get(code.partition(":")[0]) if code else None
    file = getattr(module, "__file__", None)
    if code is None or file is None or known(code):
        return
    with contextlib.suppress(OSError, RuntimeError):
        path = _file()
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="surrogateescape") as noted:
            noted.write(_line(code, os.path.realpath(file)) + "\n")


def _file() -> Path:
    """Return where it is noted: in the user's state folder, as the XDG base directory specification has it.

    Raises:
        RuntimeError: the user has no home, as in a container under a number without a name.
    """
    state = os.environ.get("XDG_STATE_HOME", "")
    return (Path(state) if os.path.isabs(state) else Path.home() / ".local" / "state") / _REMEMBERED  # noqa: PTH117


def _line(code: str, place: str) -> str:
    return json.dumps([code, place])


def _remembered() -> set[str]:
    """Return the lines noted; none from a file that somebody else could have written."""
    try:
        with _file().open(encoding="utf-8", errors="surrogateescape") as noted:
            about = os.fstat(noted.fileno())
            if about.st_uid != os.geteuid() or about.st_mode & _MODES_OF_OTHERS:
                return set()
            return set(noted.read().splitlines())
    except (OSError, RuntimeError):
        return set()


def _place(code: str) -> str | None:
    """Return the file that importing the code's module would run last; finding it imports nothing."""
    first, *rest = code.partition(":")[0].split(".")
    try:
        # The working directory goes last, as it does when the code is imported.
        found = importlib.util.find_spec(first) or importlib.machinery.PathFinder.find_spec(first, [str(Path.cwd())])
        name = first
        for part in rest:
            name = f"{name}.{part}"
            folders = list((found and found.submodule_search_locations) or ())
            found = importlib.machinery.PathFinder.find_spec(name, folders)
    except (ImportError, ValueError, OSError):
        return None
    return os.path.realpath(found.origin) if found is not None and found.origin else None
