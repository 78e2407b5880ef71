"""Encoders from a user's own code, named `package.module:factory`."""

import functools
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from genenc_core import errors, spec
from genenc_core.models import wording
from genenc_core.models.encoder import Parts
from genenc_core.models.weights import WeightsChoice, construction_rng, load_file

_DEFAULT_SIZE = (224, 224)


def build(name: str, choice: WeightsChoice, image_size: tuple[int, int] | None) -> Parts:
    """Call the factory without arguments; it returns a module that maps RGB in [0, 1] to feature maps.

    `pretrained` leaves the weights to the factory, `random:SEED` seeds torch before it, a file is loaded into it.

    Raises:
        InputError: no such module or factory, a factory that fails or returns no module, or unfit weights.
    """
    if choice.tag is not None:
        raise errors.InputError(
            f"a factory has no pretrained tags, but {choice.tag!r} was asked of {name!r}. Give random:SEED or a file, "
            "or leave the weights to the factory."
        )
    with _working_directory_importable(), construction_rng(choice):
        module = _called(name)
    if choice.path is not None:
        load_file(choice.path, model=module, trunk=module)
    height, width = image_size or _DEFAULT_SIZE
    preprocessing = spec.Preprocessing(height=height, width=width, fit="stretch")
    return Parts(model=module, trunk=module, preprocessing=preprocessing, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def _called(name: str) -> nn.Module:
    module_name, _, attribute = name.partition(":")
    try:
        factory: Any = functools.reduce(getattr, attribute.split("."), importlib.import_module(module_name))
    except (ImportError, AttributeError, ValueError) as error:
        raise errors.InputError(
            f"cannot find the model factory {name!r}: {wording.reason(error)}. Give package.module:factory, "
            f"importable from the working directory ({Path.cwd()}) or installed."
        ) from error
    except Exception as error:  # the user's module may raise anything while it is imported
        raise errors.InputError(
            f"importing {module_name!r} failed: {type(error).__name__}: {wording.reason(error)}."
        ) from error
    try:
        module = factory()
    except Exception as error:  # the user's code may raise anything
        raise errors.InputError(
            f"the model factory {name!r} failed: {type(error).__name__}: {wording.reason(error)}."
        ) from error
    if not isinstance(module, nn.Module):
        raise errors.InputError(
            f"the model factory {name!r} returned a {type(module).__name__}, not a torch.nn.Module. Name a function "
            "that takes no arguments and returns one."
        )
    return module


@contextmanager
def _working_directory_importable() -> Iterator[None]:
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)
