"""The console script: the core's command line with the Prefect flows plugged in."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from genenc_core import exits
from genenc_core.cli import app
from genenc_core.cli.runners import PlainRunner

if TYPE_CHECKING:
    from genenc_core.export import exporting
    from genenc_core.run import driver, model_export, parameters, records
    from genenc_flows import local_server

DRAIN_SECONDS = 20.0


def main() -> None:
    """Run `genenc`."""
    runner = FlowRunner()
    try:
        app.run(runner)
    except SystemExit as leaving:
        if runner.undelivered and isinstance(leaving.code, int):
            # At an ordinary end Prefect would try every event again for seconds.
            with contextlib.suppress(OSError):
                sys.stderr.flush()
            exits.leave(leaving.code)
        raise


class FlowRunner:
    """Carries out long work as Prefect flows, on the configured server or on one of this command's own."""

    def __init__(self) -> None:
        self._server: local_server.Server | None = None
        self.undelivered = False

    @contextlib.contextmanager
    def session(self) -> Iterator[None]:
        """Start the server, so that it comes up while the command imports torch and checks its arguments."""
        from genenc_flows import local_server

        local_server.quiet_environment()
        with local_server.server() as self._server:
            yield

    def extract(self, given: "parameters.ExtractParameters") -> "driver.Result":
        """Run the flow `extract_features`."""
        from genenc_core.run import encoders

        def run() -> Any:
            from genenc_flows import extraction

            return extraction.extract_features(given, return_state=True)

        # Built while the server starts; the flow finds it in this process's cache.
        encoders.warm(given)
        return _shard_result(self._state_of(run, lambda: PlainRunner().extract(given)))

    def resume(self, root: str, shards: str, options: "records.Options") -> "driver.Result":
        """Run the flow `rerun_shards`."""

        def run() -> Any:
            from genenc_flows import extraction

            return extraction.rerun_shards(
                root,
                shards,
                device=options.device,
                batch_size=options.batch_size,
                max_failures=options.max_failures,
                trust=options.trust,
                accept_changed=options.accept_changed,
                return_state=True,
            )

        return _shard_result(self._state_of(run, lambda: PlainRunner().resume(root, shards, options)))

    def export(self, given: "model_export.ExportParameters") -> "list[exporting.ExportedModel]":
        """Run the flow `export_model`."""

        def run() -> Any:
            from genenc_flows import model

            return model.export_model(given, return_state=True)

        state = self._state_of(run, lambda: PlainRunner().export(given))
        done: list[exporting.ExportedModel] = state if isinstance(state, list) else state.result()
        return done

    def _state_of(self, run: Callable[[], Any], plainly: Callable[[], Any]) -> Any:
        """Return the final state of a flow run, every state of which the server has been told.

        Without the server that is the state which the flow came to, or else what `plainly` returns.
        """
        from genenc_core import errors

        assert self._server is not None
        self._server.wait_until_ready()
        from prefect.exceptions import TerminationSignal

        from genenc_flows import lost_server

        with lost_server.Watch(self._server) as watch, lost_server.outcomes() as kept:
            try:
                return run()
            except TerminationSignal as error:
                raise errors.Stopped("ended by a signal") from error
            except Exception as error:
                if not watch.explains(error):
                    raise
                return kept[-1] if kept else plainly()
            finally:
                self.undelivered = watch.gone or not _drain()


def _shard_result(state: Any) -> "driver.Result":
    """Return what a flow over shards came to, or raise what ended it."""
    from genenc_core import errors
    from genenc_core.run import driver

    if isinstance(state, driver.Result):
        return state
    if state.is_cancelled() or state.is_cancelling():
        raise errors.Stopped(str(state.message))
    outcome = state.result(raise_on_failure=False)
    if isinstance(outcome, driver.Incomplete):
        return outcome.result
    if isinstance(outcome, driver.Result):
        return outcome
    if isinstance(outcome, BaseException):
        raise outcome
    raise errors.GenencError(f"the flow ended {state.name}: {state.message}")


def _drain() -> bool:
    """Wait until the server has every event and log of this process; return whether it has.

    What is queued when the process ends is lost.
    """
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    # Outside of event loops they return what is done and what is not.
    waits = [worker.drain_all(timeout=DRAIN_SECONDS) for worker in (EventsWorker, APILogWorker)]
    return not any(isinstance(wait, tuple) and wait[1] for wait in waits)


if __name__ == "__main__":
    # Under its own name, so that the runner can be found by it in other processes.
    from genenc_flows import entry

    entry.main()
