"""A user's own code: importing it without leaving a trace in the process, and the digests of its source."""

import ast
import functools
import hashlib
import importlib
import importlib.machinery
import importlib.util
import os
import sys
import sysconfig
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from genenc_core import errors

ATTRIBUTE = "genenc"
_INSTALLED = frozenset({"site-packages", "dist-packages"})
_FINDERS = frozenset({"importlib", "importlib.util", "importlib.machinery", "pkgutil", "runpy", "zipimport"})
"""Modules by which a source imports what its text does not name."""
_LOADED: dict[str, tuple[object, str]] = {}
"""Per module that no source names: the spec that it was imported with, and the digest of its file when it was noted."""
_BUILT: dict[str, set[str]] = {}
"""Per dotted path: modules that were imported while it was imported and its model built and tried."""
_BEFORE: dict[str, frozenset[str]] = {}
"""Per dotted path: the modules that there were before it was last imported."""
_KNOWN: dict[str, tuple[object, Mapping[str, str]]] = {}
"""Per module: the spec that it was imported with, which a reload replaces, and the digests of its source then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Digests:
    """sha256 by file name: of a factory's source and what it imports of its project, and of the files it declares."""

    code: Mapping[str, str]
    files: Mapping[str, str]


class CodeWithoutFile(UserWarning):
    """Somebody's code is in no file whose digest could be recorded."""


def found(name: str) -> Any:
    """Import `package.module:attribute` and return what it names; installed packages come before the folder here.

    Raises:
        ImportError, AttributeError, ValueError, or whatever the module raises.
    """
    module_name, _, attribute = name.partition(":")
    _BEFORE[name] = frozenset(sys.modules)
    here = str(Path.cwd())
    # Last, for a folder of images from anywhere may hold a numpy.py.
    sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    finally:
        if here in sys.path:
            del sys.path[len(sys.path) - 1 - sys.path[::-1].index(here)]
    _note(module)
    try:
        return functools.reduce(getattr, attribute.split("."), module)
    except AttributeError as error:
        raise AttributeError(f"{error} (it was imported from {getattr(module, '__file__', None)!r})") from error


def digests(code: str | None, model: nn.Module) -> Digests:
    """Return what tells the code and the files of a model of somebody's own from others; nothing for other models.

    `code` is the dotted path that was imported, `model` what it made. Besides what the sources name, modules of the
    same folder count that were imported meanwhile: since `found`, or at any time where sources compute names. Files are
    those that a module of `model` declares: `genenc = {"files": ("weights.onnx",)}`, relative to the folder that the
    code is imported from.

    Raises:
        InputError: the source has changed since it was imported, or a declared file cannot be read.
    """
    module = sys.modules.get(code.partition(":")[0]) if code else None
    if code is None or module is None:
        return Digests(code={}, files={})
    loaded = _loaded(code, module)
    noted = {name: before for name, (before, _) in loaded.items()} | dict(_note(module))
    now = {name: after for name, (_, after) in loaded.items()} | _source(module)
    if not noted and not _is_ours(module):
        warnings.warn(
            f"the code of {code!r} is in no file, so its digest is not recorded: that it changes between two sessions "
            "of a run shows only in what it computes. Put it into a module of its own",
            CodeWithoutFile,
            stacklevel=2,
        )
    if now != noted:
        raise errors.InputError(
            f"the code of {code!r} has changed since this process imported it ({describe_difference(noted, now)}), so "
            "what runs is not what the files say. Start a new process"
        )
    return Digests(code=noted, files=_declared_files(code, _root(module) or Path.cwd(), model))


def describe_difference(before: Mapping[str, str], after: Mapping[str, str], *, most: int = 5) -> str:
    """Return which files differ: `net.py changed, layers.py is new, old.py is gone`."""
    names = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    told = [
        f"{name} {'is gone' if name not in after else 'is new' if name not in before else 'changed'}" for name in names
    ]
    more = [f"and {len(told) - most} more"] if len(told) > most else []
    return ", ".join([*told[:most], *more])


def refuse_late(code: str | None, recorded: Mapping[str, str] | None, before: frozenset[str]) -> None:
    """Check that a model imports nothing of its project for the first time while it encodes.

    Args:
        code: the dotted path that was imported; None for other models.
        recorded: the digests of its code by file name; None: those of a run or spec that has none.
        before: the names of the modules that there were when its first images were encoded.

    Raises:
        EncoderError: a module was imported since, and no digest of it is recorded.
    """
    module = sys.modules.get(code.partition(":")[0]) if code else None
    root = None if module is None else _root(module)
    if recorded is None or root is None or _is_installed(root):
        return
    new = [each for name, each in list(sys.modules.items()) if name not in before and name != "__main__"]
    paths = {path.relative_to(root).as_posix() for each in new if (path := _own_file(each, root))}
    if late := sorted(paths - recorded.keys()):
        raise errors.EncoderError(
            f"model {code!r} imported {', '.join(late)} only while it encoded images, so the run has no digest of that "
            "code. Import it at the top of a module that the model is built from, and make a new run with another "
            "--out"
        )


def _note(module: ModuleType) -> Mapping[str, str]:
    """Return the digests of a module's source as they were when it was imported."""
    known = _KNOWN.get(module.__name__)
    if known is None or known[0] is not module.__spec__:
        known = _KNOWN[module.__name__] = (module.__spec__, _source(module))
    return known[1]


def _loaded(code: str, module: ModuleType) -> dict[str, tuple[str, str]]:
    """Return the digests, as noted and now, of files that were imported from a project without being named in it.

    Those are what was imported while the model was built and tried. Where sources import by computed names, or cannot
    be read, it is all that is imported from the project, for it may have been before.
    """
    root = _root(module)
    if root is None or _is_installed(root):
        return {}
    new = _BUILT.setdefault(code, set())
    new |= sys.modules.keys() - _BEFORE.get(code, frozenset(sys.modules))
    everything = _closure(module, root).computed
    told: dict[str, tuple[str, str]] = {}
    for name, each in list(sys.modules.items()):
        if (everything or name in new) and name != "__main__" and (path := _own_file(each, root)):
            spec, now = getattr(each, "__spec__", None), _sha256(path)
            if name not in _LOADED or _LOADED[name][0] is not spec:
                _LOADED[name] = (spec, now)
            told[path.relative_to(root).as_posix()] = (_LOADED[name][1], now)
    return told


def _is_ours(module: object) -> bool:
    return str(getattr(module, "__name__", "")).startswith("genenc_")


def _own_file(module: object, root: Path) -> Path | None:
    """Return the file of a module of the project in `root`; None for others."""
    file = getattr(module, "__file__", None)
    path = Path(file).absolute() if isinstance(file, str) else None
    if path is None or _is_ours(module) or not path.is_relative_to(root) or _is_installed(path) or not path.is_file():
        return None
    return path


def _source(module: ModuleType) -> dict[str, str]:
    """Return the digests of the files that a module and its imports consist of, by name below their common root."""
    root = _root(module)
    if root is None:
        archive = getattr(getattr(module, "__loader__", None), "archive", None)  # of a zip file
        return {Path(archive).name: _sha256(Path(archive))} if archive else {}
    paths = _closure(module, root).files
    return {path.relative_to(root).as_posix(): _sha256(path) for path in sorted(paths)}


def _closure(module: ModuleType, root: Path) -> "_Closure":
    top = module.__name__.partition(".")[0]
    # An installed package is not a project: what stands beside it is somebody else's.
    found = _Closure(root, only=top if _is_installed(root) else None)
    found.follow(module.__name__)
    return found


def _root(module: ModuleType) -> Path | None:
    """Return the folder that a module is imported from; None for one that is in no file."""
    file = getattr(module, "__file__", None)
    if not file or not Path(file).is_file():
        return None
    depth = module.__name__.count(".") + (1 if hasattr(module, "__path__") else 0)
    return Path(file).absolute().parents[depth]


def _is_installed(folder: Path) -> bool:
    return bool(_INSTALLED & set(folder.parts)) or folder.is_relative_to(sysconfig.get_path("stdlib"))


class _Closure:
    """Finds the files that a module's imports lead to below one folder, without importing anything.

    What is named in the source counts, wherever it stands: in a function, too.
    """

    def __init__(self, root: Path, *, only: str | None) -> None:
        self._root = root
        self._only = only
        self._places: dict[str, Sequence[str] | None] = {"": [str(root)]}
        self.files: set[Path] = set()
        self.computed = False
        """whether a source may import what it does not name, or is no text"""

    def follow(self, name: str) -> None:
        """Add the files that the import of a module leads to."""
        todo = [name]
        while todo:
            todo += self._new(todo.pop())

    def _new(self, name: str) -> Iterator[str]:
        """Add the module and the packages around it; give the names that those which are new import."""
        around = ""
        for part in name.split("."):
            parent, around = around, f"{around}.{part}" if around else part
            if around not in self._places:
                self._places[around] = None
                if parent or self._is_own(part):
                    yield from self._entered(around, self._places[parent])
            if self._places[around] is None:
                return

    def _entered(self, name: str, places: Sequence[str] | None) -> Iterator[str]:
        spec = importlib.machinery.PathFinder.find_spec(name, places)
        if spec is None:
            return
        inside = spec.submodule_search_locations
        self._places[name] = [] if inside is None else list(inside)
        path = Path(spec.origin) if spec.has_location and spec.origin else None
        if path is None or path in self.files or not path.is_relative_to(self._root):
            return
        self.files.add(path)
        if path.suffix != ".py":
            self.computed = True
            return
        package = name if inside is not None else name.rpartition(".")[0]
        names = list(_imports(path.read_bytes(), package))
        self.computed |= not _FINDERS.isdisjoint(names)
        yield from names

    def _is_own(self, top: str) -> bool:
        """Whether a name without dots would be imported from this folder."""
        if top in sys.stdlib_module_names or top.startswith("genenc_") or (self._only and top != self._only):
            return False
        loaded = sys.modules.get(top)
        spec = getattr(loaded, "__spec__", None)
        if loaded is None:
            try:
                spec = importlib.util.find_spec(top)
            except (ImportError, ValueError):
                return False
        if spec is None:
            return loaded is None
        origins = [spec.origin] if spec.has_location else list(spec.submodule_search_locations or ())
        return any(Path(origin).absolute().is_relative_to(self._root) for origin in origins if origin)


def _imports(source: bytes, package: str) -> Iterator[str]:
    """Give the dotted names that a source imports, and those that may be attributes or modules."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # not imported, then
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute("." * node.level + (node.module or ""), package)
            if base:
                yield base
                yield from (f"{base}.{alias.name}" for alias in node.names if alias.name != "*")
        elif isinstance(node, ast.Call) and node.args and _name_of(node.func) in ("import_module", "__import__"):
            first = node.args[0]
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                yield from filter(None, [_absolute(first.value, package)])
        elif isinstance(node, ast.Name) and node.id in ("__import__", "exec"):
            yield "importlib"


def _absolute(name: str, package: str) -> str | None:
    try:
        return importlib.util.resolve_name(name, package)
    except ImportError:
        return None


def _name_of(function: ast.expr) -> str | None:
    return getattr(function, "attr", None) or getattr(function, "id", None)


def _declared_files(code: str, root: Path, model: nn.Module) -> dict[str, str]:
    """Return the digests of the files that modules of a model declare, by their names below the root."""
    told: dict[str, str] = {}
    for name in dict.fromkeys(_declared(model)):
        path = root / name
        short = os.path.relpath(path, root) if path.is_relative_to(root) else path.name
        try:
            told[name if short in told else Path(short).as_posix()] = _sha256(path)
        except OSError as error:
            raise errors.InputError(
                f"the file {str(path)!r}, which {code!r} declares in {ATTRIBUTE!r}, cannot be read: "
                f"{error.strerror or error}. Names are relative to {str(root)!r}; name files, not folders"
            ) from error
    return told


def _declared(model: nn.Module) -> Iterator[str]:
    for module in model.modules():
        own = getattr(module, ATTRIBUTE, None)
        if isinstance(own, Mapping) and isinstance(files := own.get("files"), list | tuple):
            yield from (os.fspath(file) for file in files if isinstance(file, str | os.PathLike))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
