"""Trust in code named by files: imported only with the user's consent, which is remembered."""

import contextlib
import importlib.machinery
import importlib.util
import json
import os
import sys
from pathlib import Path

from genenc_core import errors

_REMEMBERED = "genenc/trusted-code"
_WRITABLE_BY_OTHERS = 0o022


def code_of(kind: str, name: str, arguments: str | None) -> str | None:
    """Return the dotted path of user code that building a model imports; None if there is none.

    `kind`, `name` and `arguments` are those of `spec.SourceInfo`.
    """
    if kind == "python":
        return name
    if kind != "factory" or arguments is None:
        return None
    backbone = json.loads(arguments).get("backbone")
    return dotted(backbone) if isinstance(backbone, str) else None


def dotted(name: str) -> str | None:
    """Return the `package.module:factory` in the name of a model or backbone; None if it is not one."""
    return name.removeprefix("python_") if ":" in name else None


def require(code: str | None, *, who: str, trust: bool) -> None:
    """Check that the user trusts the code that a file names: now, or by having run it before.

    Raises:
        InputError: the code is not trusted.
    """
    if code is None or trust or known(code):
        return
    raise errors.InputError(
        f"{who} names the code {code!r}, which would be imported and run. If you trust that code and the author of "
        "the file, add --trust; this is remembered, as is code that you name as --model yourself"
    )


def known(code: str) -> bool:
    """Return whether the user ran this code before: the same name in the same file. Imports nothing."""
    place = _place(code)
    return place is not None and _line(code, place) in _remembered()


def remember(code: str | None) -> None:
    """Record that the user ran this code, which has been imported; best effort."""
    module = sys.modules.get(code.partition(":")[0]) if code else None
    file = getattr(module, "__file__", None)
    if code is None or file is None or known(code):
        return
    with contextlib.suppress(OSError, RuntimeError):
        path = _file()
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="surrogateescape") as records:
            records.write(_line(code, os.path.realpath(file)) + "\n")


def _file() -> Path:
    """Return the file of trusted code in the user's state folder (XDG base directory specification).

    Raises:
        RuntimeError: the user has no home, as in a container with an unnamed user id.
    """
    state = os.environ.get("XDG_STATE_HOME", "")
    return (Path(state) if os.path.isabs(state) else Path.home() / ".local" / "state") / _REMEMBERED  # noqa: PTH117


def _line(code: str, place: str) -> str:
    return json.dumps([code, place])


def _remembered() -> set[str]:
    """Return the recorded lines; none from a file that other users can write."""
    try:
        with _file().open(encoding="utf-8", errors="surrogateescape") as records:
            status = os.fstat(records.fileno())
            if status.st_uid != os.geteuid() or status.st_mode & _WRITABLE_BY_OTHERS:
                return set()
            return set(records.read().splitlines())
    except (OSError, RuntimeError):
        return set()


def _place(code: str) -> str | None:
    """Return the file of the code's module without importing anything."""
    first, *rest = code.partition(":")[0].split(".")
    try:
        # The working directory comes last, as in `user_code.load_object`.
        spec = importlib.util.find_spec(first) or importlib.machinery.PathFinder.find_spec(first, [str(Path.cwd())])
        name = first
        for part in rest:
            name = f"{name}.{part}"
            folders = list((spec and spec.submodule_search_locations) or ())
            spec = importlib.machinery.PathFinder.find_spec(name, folders)
    except (ImportError, ValueError, OSError):
        return None
    return os.path.realpath(spec.origin) if spec is not None and spec.origin else None
