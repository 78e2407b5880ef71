"""A task that is stopped on request ends Cancelled: nothing failed."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

from prefect.states import Cancelled

from genenc_core import errors

Given = ParamSpec("Given")
Result = TypeVar("Result")


def cancellable(work: Callable[Given, Result]) -> Callable[Given, Result]:
    """Return a task's function that returns Prefect's state Cancelled when stopped; its callers get `Stopped`."""

    @functools.wraps(work)
    def run(*given: Given.args, **named: Given.kwargs) -> Result:
        try:
            return work(*given, **named)
        except errors.Stopped as stopped:
            return cast(Result, Cancelled(message=str(stopped), data=stopped))

    return run
