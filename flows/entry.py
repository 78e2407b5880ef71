"""The console script: the core's command line with the Prefect flows plugged in."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows import local_server
from genenc_core.cli import app

if TYPE_CHECKING:
    from genenc_core.export import exporting
    from genenc_core.run import driver, model_export, parameters, records

DRAIN_SECONDS = 20.0


def main() -> None:
    """Run `genenc`."""
    app.build_app(FlowRunner())()


class FlowRunner:
    """Carries out long work as Prefect flows, on the configured server or on one of this command's own."""

    @contextlib.contextmanager
    def session(self) -> Iterator[None]:
        """Start the server, so that it comes up while the command imports torch and checks its arguments."""
        local_server.quiet_environment()
        with local_server.local_server():
            yield

    def extract(self, given: "parameters.ExtractParameters") -> "driver.Result":
        """Run the flow `extract_features`."""

        def run() -> Any:
            from flows import extraction

            return extraction.extract_features(given, return_state=True)

        return _shard_result(run, warm_up=lambda: _warm_up(given))

    def resume(self, root: Path, shards: str, options: "records.Options") -> "driver.Result":
        """Run the flow `rerun_shards`."""

        def run() -> Any:
            from flows import extraction

            return extraction.rerun_shards(
                str(root),
                shards,
                device=options.device,
                batch_size=options.batch_size,
                max_failures=options.max_failures,
                return_state=True,
            )

        return _shard_result(run)

    def export(self, given: "model_export.ExportParameters") -> "list[exporting.ExportedModel]":
        """Run the flow `export_model`."""

        def run() -> Any:
            from flows import model

            return model.export_model(given, return_state=True)

        done: list[exporting.ExportedModel] = _run_flow(run).result()
        return done


def _shard_result(run: Callable[[], Any], *, warm_up: Callable[[], None] | None = None) -> "driver.Result":
    """Run a flow over shards; return what came of it, or raise what ended it."""
    from genenc_core import errors
    from genenc_core.run import driver

    state = _run_flow(run, warm_up=warm_up)
    outcome = state.result(raise_on_failure=False)
    if state.is_cancelled():
        raise errors.Stopped(str(state.message))
    if isinstance(outcome, driver.Incomplete):
        return outcome.result
    if isinstance(outcome, driver.Result):
        return outcome
    if isinstance(outcome, BaseException):
        raise outcome
    raise errors.GenencError(f"the flow ended {state.name}: {state.message}")


def _run_flow(run: Callable[[], Any], *, warm_up: Callable[[], None] | None = None) -> Any:
    """Return the final state of a flow run; the server starts while `warm_up` works."""
    if warm_up is not None:
        warm_up()
    local_server.wait_until_ready()
    state = run()
    _drain()
    return state


def _warm_up(given: "parameters.ExtractParameters") -> None:
    """Build the model while the server starts; the flow finds it in this process's cache."""
    from genenc_core.run import encoders

    encoders.warm(given)


def _drain() -> None:
    """Wait until the server knows every state that this process told: it loses what is queued when it ends."""
    from prefect.events.worker import EventsWorker

    EventsWorker.drain_all(timeout=DRAIN_SECONDS)


if __name__ == "__main__":
    main()
