"""Global state of the process that somebody's code may change while it is imported or builds its model."""

import contextlib
import locale
import logging
import os
import random
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from PIL import ImageFile

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def restored(name: str) -> Iterator[None]:
    """Undo in the end what the block changes of the state that a run depends on.

    That is the working directory, the command line, standard streams, torch's defaults, random states, warnings, the
    root logger, signal handlers and the locale. `sys.argv` holds only `name` meanwhile, as for a program without
    arguments. Folders added to `sys.path` stay, for imports to come, but behind all others.
    """
    with contextlib.ExitStack() as stack:
        for read, write in (*_PLAIN, *_TORCH):
            try:
                value = read()
            except (OSError, RuntimeError, locale.Error):  # no such folder, two interfaces of torch mixed, no locale
                continue
            stack.callback(_put_back, read, write, value)
        stack.enter_context(warnings.catch_warnings())
        stack.callback(_restore_path, list(sys.path))
        sys.argv = [name]
        yield


def _put_back(read: Callable[[], Any], write: Callable[[Any], object], value: Any) -> None:
    with contextlib.suppress(OSError, RuntimeError, locale.Error):
        if not _same(read(), value):
            write(value)
        return
    with contextlib.suppress(OSError, RuntimeError, locale.Error):
        write(value)  # what there is now cannot be read, such as a working directory that was removed


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
    # The device of `with torch.device` around is not one that is set.
    (torch.get_default_device, lambda _device: torch.set_default_device(None)),
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    (torch.get_num_threads, torch.set_num_threads),
    (
        lambda: (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()),
        _set_deterministic,
    ),
)
