"""Console script: the core's command line with Prefect flows as its runner."""

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from genenc_core.cli import app
from genenc_core.cli.runners import PlainRunner
from genenc_core.system import exits

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from genenc_core.cli.checks import Check
    from genenc_core.dataset import parameters as dataset_parameters
    from genenc_core.dataset import update
    from genenc_core.export import exporter
    from genenc_core.features import parameters as feature_parameters
    from genenc_core.features import rerun
    from genenc_core.probing import parameters as probe_parameters
    from genenc_core.run import folder, parameters, records
    from genenc_flows import local_server

Outcome = TypeVar("Outcome")
DRAIN_SECONDS = 20.0


def main() -> None:
    """Run `genenc`."""
    runner = FlowRunner()
    try:
        app.run(runner)
    except SystemExit as leaving:
        if runner.undelivered and isinstance(leaving.code, int):
            # Skip Prefect's exit handlers, which would retry every event for seconds.
            with contextlib.suppress(OSError):
                sys.stderr.flush()
            exits.leave(leaving.code)
        raise


class FlowRunner:
    """Runs long work as Prefect flows, on the configured server or on a temporary one."""

    def __init__(self) -> None:
        self._server: local_server.Server | None = None
        self.undelivered = False

    @contextlib.contextmanager
    def session(self) -> Iterator[None]:
        """Start the server early, so that it comes up while the command imports torch and checks its arguments."""
        from genenc_flows import local_server

        local_server.quiet_environment()
        with local_server.server() as self._server:
            yield

    def extract(self, given: "parameters.ExtractParameters") -> "records.Result":
        """Run the flow `extract_features`."""
        from genenc_core.run import model_cache

        def run() -> Any:
            from genenc_flows import extraction

            return extraction.extract_features(given, return_state=True)

        # Built while the server starts; the flow gets it from this process's cache.
        model_cache.warm(given)
        return _result(self._state_of(run, lambda: PlainRunner().extract(given)))

    def resume(self, run: "folder.RunFolder", shards: str, changes: "parameters.Changes") -> "records.Result":
        """Run the flow `rerun_shards`."""

        def work() -> Any:
            from genenc_flows import extraction

            return extraction.rerun_shards(run.root, shards, **dataclasses.asdict(changes), return_state=True)

        return _result(self._state_of(work, lambda: PlainRunner().resume(run, shards, changes)))

    def probe(self, given: "probe_parameters.ProbeParameters") -> "records.Result":
        """Run the flow `probe_features`."""

        def work() -> Any:
            from genenc_flows import probing

            return probing.probe_features(given, return_state=True)

        return _result(self._state_of(work, lambda: PlainRunner().probe(given)))

    def update(self, given: "dataset_parameters.UpdateParameters") -> "update.Updated":
        """Run the flow `update_dataset`."""
        from genenc_core.dataset import update

        def work() -> Any:
            from genenc_flows import dataset

            return dataset.update_dataset(given, return_state=True)

        return _outcome(self._state_of(work, lambda: PlainRunner().update(given)), update.Updated)

    def export(self, given: "parameters.ExportParameters") -> "list[exporter.ExportedModel]":
        """Run the flow `export_model`."""

        def run() -> Any:
            from genenc_flows import model

            return model.export_model(given, return_state=True)

        state = self._state_of(run, lambda: PlainRunner().export(given))
        done: list[exporter.ExportedModel] = state if isinstance(state, list) else state.result()
        return done

    def rerun(self, given: "feature_parameters.RerunParameters") -> "rerun.Rerun":
        """Run the flow `rerun_from`."""
        from genenc_core.features import rerun

        def work() -> Any:
            from genenc_flows import features

            return features.rerun_from(given, return_state=True)

        return _outcome(self._state_of(work, lambda: PlainRunner().rerun(given)), rerun.Rerun)

    def serve(self, *, port: int, pool: str | None, limit: int) -> None:
        """Run a server and a worker until interrupted."""
        from genenc_flows import local_server, serving

        local_server.private_environment()
        serving.serve(port=port, pool=pool, limit=limit)

    def deploy(self, *, pool: str | None, notify: str | None) -> "Sequence[str]":
        """Register the deployments with the configured server; return a line for each."""
        from genenc_core import errors
        from genenc_flows import local_server

        local_server.quiet_environment()
        url = local_server.configured_url()
        if url is None:
            raise errors.InputError(
                "no Prefect server is named: set PREFECT_API_URL (http://127.0.0.1:4200/api), or run genenc serve"
            )
        with local_server.connected(url) as server:
            server.wait_until_ready("start it, or set PREFECT_API_URL to another")
            from genenc_flows import deploying

            return deploying.deploy(pool, notify)

    def check(self, pool: str | None) -> "Iterable[Check]":
        """Check the server, and what it needs."""
        from genenc_flows import local_server, server_checks

        local_server.quiet_environment()
        return server_checks.check(pool)

    def _state_of(self, run: Callable[[], Any], fallback: Callable[[], Any]) -> Any:
        """Return the final state of a flow run, after all its states were sent to the server.

        If the server is lost, return the flow's outcome, or the result of `fallback` if there is none.
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
                raise errors.Stopped("terminated by a signal") from error
            except Exception as error:
                if not watch.explains(error):
                    raise
                return kept[-1] if kept else fallback()
            finally:
                self.undelivered = watch.gone or not _drain()


def _result(state: Any) -> "records.Result":
    """Return the result of a flow over shards, or raise its error."""
    from genenc_core.run import records

    return _outcome(state, records.Result)


def _outcome(state: Any, kind: type[Outcome]) -> Outcome:
    """Return the outcome of a flow, also an incomplete one, or raise its error."""
    from genenc_core import errors
    from genenc_core.run import records

    if isinstance(state, kind):
        return state
    if state.is_cancelled() or state.is_cancelling():
        raise errors.Stopped(str(state.message))
    found = state.result(raise_on_failure=False)
    if isinstance(found, records.Incomplete):
        found = found.result
    if isinstance(found, kind):
        return found
    if isinstance(found, BaseException):
        raise found
    raise errors.GenencError(f"the flow ended {state.name}: {state.message}")


def _drain() -> bool:
    """Wait until all events and logs were sent to the server; return whether they were.

    Anything still queued at exit is lost.
    """
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    # Outside event loops they return (done, not done).
    waits = [worker.drain_all(timeout=DRAIN_SECONDS) for worker in (EventsWorker, APILogWorker)]
    return not any(isinstance(wait, tuple) and wait[1] for wait in waits)


if __name__ == "__main__":
    # Import under the module's real name, so that other processes can find the runner.
    from genenc_flows import entry

    entry.main()
