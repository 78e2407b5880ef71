"""User code: imports that leave process state unchanged, and digests of its source."""

import ast
import contextlib
import functools
import importlib
import importlib.machinery
import importlib.util
import locale
import logging
import os
import random
import signal
import sys
import sysconfig
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import ImageFile
from torch import nn

from genenc_core import errors
from genenc_core.system.digests import CODE

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
ATTRIBUTE = "genenc"
_INSTALLED = frozenset({"site-packages", "dist-packages"})
_FINDERS = frozenset({"importlib", "importlib.util", "importlib.machinery", "pkgutil", "runpy", "zipimport"})
"""modules for dynamic imports, whose targets do not appear in the source"""
_DYNAMIC: dict[str, tuple[object, str]] = {}
"""per dynamically imported module: its spec at import, and the digest of its file when it was first seen"""
_BUILT: dict[str, set[str]] = {}
"""per dotted path: modules imported while it was imported and its model was built and tried"""
_BEFORE: dict[str, frozenset[str]] = {}
"""per dotted path: modules that were loaded before its last import"""
_AT_IMPORT: dict[str, tuple[object, Mapping[str, str]]] = {}
"""per module: its spec at import, which a reload replaces, and the digests of its source at that time"""


@contextlib.contextmanager
def restored(name: str) -> Iterator[None]:
    """Restore the process state that a run depends on when the block ends.

    That is the working directory, the command line, standard streams, torch's defaults, random states, warnings, the
    root logger, signal handlers and the locale. Inside the block `sys.argv` holds only `name`, as for a program without
    arguments. Folders added to `sys.path` are kept for later imports, but moved to its end.

    Inside the block no bytecode is written: Python would reuse it for a source that changes within the same second to
    another one of equal size, whose digest the run records.
    """
    with contextlib.ExitStack() as stack:
        for read, write in (*_PLAIN, *_TORCH):
            try:
                value = read()
            except (OSError, RuntimeError, locale.Error):  # removed folder, mixed APIs of torch, unknown locale
                continue
            stack.callback(_put_back, read, write, value)
        stack.enter_context(warnings.catch_warnings())
        stack.callback(_restore_path, list(sys.path))
        sys.argv = [name]
        sys.dont_write_bytecode = True
        yield


def _put_back(read: Callable[[], Any], write: Callable[[Any], object], value: Any) -> None:
    with contextlib.suppress(OSError, RuntimeError, locale.Error):
        if not _same(read(), value):
            write(value)
        return
    with contextlib.suppress(OSError, RuntimeError, locale.Error):
        write(value)  # the current value cannot be read, such as a removed working directory


def _same(one: Any, other: Any) -> bool:
    return one is other or (isinstance(one, str | int | bool | torch.dtype | torch.device) and bool(one == other))


def _restore_path(before: list[str]) -> None:
    sys.path[:] = [*before, *(folder for folder in sys.path if folder not in before)]


def _logging() -> tuple[Any, ...]:
    root = logging.getLogger()
    ours = [each for key, each in root.manager.loggerDict.items() if key.startswith("genenc_")]
    loggers = [each for each in ours if isinstance(each, logging.Logger)]
    return (
        root.level,
        root.manager.disable,
        list(root.handlers),
        [(each, each.level, each.disabled) for each in loggers],
    )


def _set_logging(state: tuple[Any, ...]) -> None:
    root = logging.getLogger()
    level, root.manager.disable, root.handlers[:], loggers = state
    root.setLevel(level)
    for logger, level, disabled in loggers:
        logger.setLevel(level)
        logger.disabled = disabled


def _handlers() -> list[Any]:
    return [signal.getsignal(number) for number in _SIGNALS]


def _set_handlers(handlers: list[Any]) -> None:
    for number, handler in zip(_SIGNALS, handlers, strict=True):
        if signal.getsignal(number) is not handler:  # only the main thread can have changed it
            signal.signal(number, handler)


def _attribute(owner: Any, name: str) -> tuple[Callable[[], Any], Callable[[Any], object]]:
    return lambda: getattr(owner, name), lambda value: setattr(owner, name, value)


def _set_deterministic(mode: tuple[bool, bool]) -> None:
    torch.use_deterministic_algorithms(mode[0], warn_only=mode[1])


_PLAIN: tuple[tuple[Callable[[], Any], Callable[[Any], object]], ...] = (
    (os.getcwd, os.chdir),
    _attribute(sys, "argv"),
    _attribute(sys, "dont_write_bytecode"),
    _attribute(sys, "stdout"),
    _attribute(sys, "stderr"),
    _attribute(ImageFile, "LOAD_TRUNCATED_IMAGES"),
    (random.getstate, random.setstate),
    (np.random.get_state, np.random.set_state),
    (lambda: locale.setlocale(locale.LC_ALL), lambda value: locale.setlocale(locale.LC_ALL, value)),
    (_logging, _set_logging),
    (_handlers, _set_handlers),
)
_TORCH: tuple[tuple[Callable[[], Any], Callable[[Any], object]], ...] = (
    (torch.get_default_dtype, torch.set_default_dtype),
    # Inside `with torch.device(...)` the current device is not the default that was set.
    (torch.get_default_device, lambda _device: torch.set_default_device(None)),
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    (torch.get_num_threads, torch.set_num_threads),
    (
        lambda: (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()),
        _set_deterministic,
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Digests:
    """sha256 by file name: of a factory's source and its imports from the same project, and of declared files."""

    code: Mapping[str, str]
    files: Mapping[str, str]


class CodeWithoutFile(UserWarning):
    """User code is not in a file, so its digest cannot be recorded."""


def load_object(name: str) -> Any:
    """Import `package.module:attribute`; installed packages take precedence over the working directory.

    Raises:
        ImportError, AttributeError, ValueError, or whatever the module raises.
    """
    module_name, _, attribute = name.partition(":")
    _BEFORE[name] = frozenset(sys.modules)
    here = str(Path.cwd())
    loaded = sys.modules.get(module_name)
    # Last, because a folder of images from anywhere may contain a numpy.py.
    sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    finally:
        if here in sys.path:
            del sys.path[len(sys.path) - 1 - sys.path[::-1].index(here)]
    if loaded is not None:
        _check_same_module(loaded, here)
    _digests_at_import(module)
    try:
        return functools.reduce(getattr, attribute.split("."), module)
    except AttributeError as error:
        raise AttributeError(f"{error} (it was imported from {getattr(module, '__file__', None)!r})") from error


def _check_same_module(loaded: ModuleType, here: str) -> None:
    """Check that an already imported module is the one that its name refers to in the working directory.

    Raises:
        ImportError: it was imported from another folder, which is no longer on the module search path.
    """
    root = _root(loaded)
    if (
        root is None
        or str(root) == here
        or _is_installed(root)
        or str(root) in {str(Path(p).absolute()) for p in sys.path}
    ):
        return
    spec = importlib.machinery.PathFinder.find_spec(loaded.__name__.partition(".")[0], [*sys.path, here])
    place = spec.origin if spec is not None and spec.has_location else None
    if place and Path(place).absolute().is_relative_to(here):
        raise ImportError(
            f"this process imported {loaded.__name__!r} from {str(root)!r}, but the working directory has another "
            "module of that name: start a new process for it"
        )


def digests(code: str | None, model: nn.Module) -> Digests:
    """Return the digests that identify the code and files of a user's model; empty for other models.

    `code` is the dotted path that was imported, `model` its result. Included are the modules that the sources name,
    and modules of the same folder imported since `load_object`, or at any time if sources compute module names. Files
    are those that a module of `model` declares: `genenc = {"files": ("weights.onnx",)}`, relative to the folder that
    the code is imported from.

    Raises:
        InputError: the source has changed since it was imported, or a declared file cannot be read.
    """
    module = sys.modules.get(code.partition(":")[0]) if code else None
    if code is None or module is None:
        return Digests(code={}, files={})
    dynamic = _dynamic_imports(code, module)
    recorded = {name: before for name, (before, _) in dynamic.items()} | dict(_digests_at_import(module))
    now = {name: after for name, (_, after) in dynamic.items()} | _source(module)
    if not recorded and not _is_genenc(module):
        warnings.warn(
            f"the code of {code!r} is not in a file, so its digest is not recorded: changes between two sessions of a "
            "run are only visible in the results. Move it to a module",
            CodeWithoutFile,
            stacklevel=2,
        )
    if now != recorded:
        raise errors.InputError(
            f"the code of {code!r} has changed since this process imported it ({describe_difference(recorded, now)}), "
            "so the running code differs from the files. Start a new process"
        )
    return Digests(code=recorded, files=_declared_files(code, _root(module) or Path.cwd(), model))


def describe_difference(before: Mapping[str, str], after: Mapping[str, str], *, limit: int = 5) -> str:
    """Describe which files differ: `net.py changed, layers.py is new, old.py is gone`."""
    names = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    changes = [
        f"{name} {'is gone' if name not in after else 'is new' if name not in before else 'changed'}" for name in names
    ]
    more = [f"and {len(changes) - limit} more"] if len(changes) > limit else []
    return ", ".join([*changes[:limit], *more])


def changes_since(code: str, recorded: Digests) -> str:
    """Describe how files on the disk differ from recorded ones, without importing `code`.

    Returns "" if they do not, or if the code is not there. Declared files that are not there may lie elsewhere.
    """
    for root in _folders_of(code):
        now = {name: CODE.hex_of_file(root / name) for name in recorded.code if (root / name).is_file()}
        if now:
            files = {name: CODE.hex_of_file(root / name) for name in recorded.files if (root / name).is_file()}
            before = {name: digest for name, digest in recorded.files.items() if name in files}
            return describe_difference({**recorded.code, **before}, {**now, **files})
    return ""


def _folders_of(code: str) -> list[Path]:
    """Return the folders from which the package or module of a dotted path may be imported; nothing is imported."""
    top, spec = code.partition(":")[0].partition(".")[0], None
    with contextlib.suppress(ImportError, ValueError):
        spec = importlib.util.find_spec(top)
    spec = spec or importlib.machinery.PathFinder.find_spec(top, [str(Path.cwd())])
    if spec is None:
        return []
    inside = spec.submodule_search_locations or ([spec.origin] if spec.has_location and spec.origin else [])
    return [Path(place).absolute().parent for place in inside]


def refuse_late_imports(code: str | None, recorded: Mapping[str, str] | None, before: frozenset[str]) -> None:
    """Check that a model does not import modules of its project while encoding.

    Args:
        code: the dotted path that was imported; None for other models.
        recorded: the digests of its code by file name; None if the run or spec has none.
        before: the names of the modules that were loaded when it encoded its first images.

    Raises:
        EncoderError: a module was imported since, and its digest is not recorded.
    """
    module = sys.modules.get(code.partition(":")[0]) if code else None
    root = None if module is None else _root(module)
    if recorded is None or root is None or _is_installed(root):
        return
    new = [sys.modules.get(name) for name in set(sys.modules) - before - {"__main__"}]
    paths = {path.relative_to(root).as_posix() for each in new if each and (path := _project_file(each, root))}
    if late := sorted(paths - recorded.keys()):
        raise errors.EncoderError(
            f"model {code!r} imported {', '.join(late)} while encoding images, so the run has no digest of that code. "
            "Import it at the top of a module that the model is built from, and start a new run with another --out"
        )


def _digests_at_import(module: ModuleType) -> Mapping[str, str]:
    """Return the digests of a module's source at the time of its import."""
    entry = _AT_IMPORT.get(module.__name__)
    if entry is None or entry[0] is not module.__spec__:
        entry = _AT_IMPORT[module.__name__] = (module.__spec__, _source(module))
    return entry[1]


def _dynamic_imports(code: str, module: ModuleType) -> dict[str, tuple[str, str]]:
    """Return the digests, first seen and current, of project files that were imported without being named in a source.

    Those are the modules imported while the model was built and tried. If sources compute module names or cannot be
    read, all loaded modules of the project are included, since they may have been imported earlier.
    """
    root = _root(module)
    if root is None or _is_installed(root):
        return {}
    new = _BUILT.setdefault(code, set())
    new |= sys.modules.keys() - _BEFORE.get(code, frozenset(sys.modules))
    everything = _import_closure(module, root).is_dynamic
    found: dict[str, tuple[str, str]] = {}
    for name, each in list(sys.modules.items()):
        if (everything or name in new) and name != "__main__" and (path := _project_file(each, root)):
            spec, now = getattr(each, "__spec__", None), CODE.hex_of_file(path)
            if name not in _DYNAMIC or _DYNAMIC[name][0] is not spec:
                _DYNAMIC[name] = (spec, now)
            found[path.relative_to(root).as_posix()] = (_DYNAMIC[name][1], now)
    return found


def _is_genenc(module: object) -> bool:
    return str(getattr(module, "__name__", "")).startswith("genenc_")


def _project_file(module: object, root: Path) -> Path | None:
    """Return the file of a module of the project in `root`; None for others."""
    file = getattr(module, "__file__", None)
    path = Path(file).absolute() if isinstance(file, str) else None
    if path is None or _is_genenc(module) or not path.is_relative_to(root) or _is_installed(path) or not path.is_file():
        return None
    return path


def _source(module: ModuleType) -> dict[str, str]:
    """Return the digests of the source files of a module and its imports, by path relative to their common root."""
    root = _root(module)
    if root is None:
        archive = getattr(getattr(module, "__loader__", None), "archive", None)  # of a zip file
        return {Path(archive).name: CODE.hex_of_file(Path(archive))} if archive else {}
    paths = _import_closure(module, root).files
    return {path.relative_to(root).as_posix(): CODE.hex_of_file(path) for path in sorted(paths)}


def _import_closure(module: ModuleType, root: Path) -> "_ImportClosure":
    top = module.__name__.partition(".")[0]
    # An installed package is not a project: its neighbours are unrelated.
    closure = _ImportClosure(root, only=top if _is_installed(root) else None)
    closure.follow(module.__name__)
    return closure


def _root(module: ModuleType) -> Path | None:
    """Return the folder that a module is imported from; None if it is not in a file."""
    file = getattr(module, "__file__", None)
    if not file or not Path(file).is_file():
        return None
    # vars() because a module's __getattr__ may return anything.
    depth = module.__name__.count(".") + (1 if "__path__" in vars(module) else 0)
    return Path(file).absolute().parents[depth]


def _is_installed(folder: Path) -> bool:
    return bool(_INSTALLED & set(folder.parts)) or folder.is_relative_to(sysconfig.get_path("stdlib"))


class _ImportClosure:
    """The source files below a folder that a module imports, directly or indirectly; imports nothing itself.

    Import statements count wherever they are in the source, including inside functions.
    """

    def __init__(self, root: Path, *, only: str | None) -> None:
        self._root = root
        self._only = only
        self._places: dict[str, Sequence[str] | None] = {"": [str(root)]}
        self.files: set[Path] = set()
        self.is_dynamic = False
        """whether a source may import modules that it does not name, or is not text"""

    def follow(self, name: str) -> None:
        """Add the files that importing a module loads."""
        todo = [name]
        while todo:
            todo += self._add(todo.pop())

    def _add(self, name: str) -> Iterator[str]:
        """Add a module and its parent packages; yield the names that newly added ones import."""
        dotted = ""
        for part in name.split("."):
            parent, dotted = dotted, f"{dotted}.{part}" if dotted else part
            if dotted not in self._places:
                self._places[dotted] = None
                if parent or self._is_local(part):
                    yield from self._add_file(dotted, self._places[parent])
            if self._places[dotted] is None:
                return

    def _add_file(self, name: str, places: Sequence[str] | None) -> Iterator[str]:
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
            self.is_dynamic = True
            return
        package = name if inside is not None else name.rpartition(".")[0]
        names = list(_imports(path.read_bytes(), package))
        self.is_dynamic |= not _FINDERS.isdisjoint(names)
        yield from names

    def _is_local(self, top: str) -> bool:
        """Return whether a top-level name would be imported from this folder."""
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
    """Yield the dotted names that a source imports, including those that may be attributes or modules."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # cannot be imported either
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
    """Return the digests of the files that modules of a model declare, by path relative to the root."""
    found: dict[str, str] = {}
    for name in dict.fromkeys(_declared(model)):
        path = root / name
        short = os.path.relpath(path, root) if path.is_relative_to(root) else path.name
        try:
            found[name if short in found else Path(short).as_posix()] = CODE.hex_of_file(path)
        except OSError as error:
            raise errors.InputError(
                f"the file {str(path)!r}, which {code!r} declares in {ATTRIBUTE!r}, cannot be read: "
                f"{error.strerror or error}. Names are relative to {str(root)!r}; name files, not folders"
            ) from error
    return found


def _declared(model: nn.Module) -> Iterator[str]:
    for module in model.modules():
        own = getattr(module, ATTRIBUTE, None)
        if isinstance(own, Mapping) and isinstance(files := own.get("files"), list | tuple):
            yield from (os.fspath(file) for file in files if isinstance(file, str | os.PathLike))
