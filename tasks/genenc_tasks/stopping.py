"""Tasks stopped on request end Cancelled, not Failed; those in other processes than the flow follow its state."""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar, cast
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.runtime import flow_run
from prefect.states import Cancelled

from genenc_core import errors
from genenc_core.encoding import cancellation

Given = ParamSpec("Given")
Result = TypeVar("Result")
FOLLOW_SECONDS = 2.0


def cancellable(work: Callable[Given, Result]) -> Callable[Given, Result]:
    """Decorate a task function to return Prefect's state Cancelled when stopped; callers get `Stopped`."""

    @functools.wraps(work)
    def run(*given: Given.args, **named: Given.kwargs) -> Result:
        try:
            return work(*given, **named)
        except errors.Stopped as stopped:
            return cast(Result, Cancelled(message=str(stopped), data=stopped))

    return run


@contextlib.contextmanager
def with_flow_run() -> Iterator[None]:
    """Stop the work in this context when its flow run is cancelled, or ended without it."""
    ended, run_id = threading.Event(), flow_run.id

    def follow(control: cancellation.Control) -> None:
        while not ended.wait(FOLLOW_SECONDS) and run_id:
            with contextlib.suppress(Exception), get_client(sync_client=True) as client:  # the server may be away
                state = client.read_flow_run(UUID(run_id)).state
                if state is not None and (state.is_cancelling() or state.is_final()):
                    control.stop()

    with cancellation.ensure() as control:
        follower = threading.Thread(target=follow, args=(control,), daemon=True)
        follower.start()
        try:
            yield
        finally:
            ended.set()
