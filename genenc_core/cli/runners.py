"""The Runner protocol for long work, and the runner without Prefect."""

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Protocol

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


class Runner(Protocol):
    """Protocol for executing long work: in the core, or as Prefect flows."""

    def session(self) -> AbstractContextManager[None]:
        """Set up what the work needs; entered before slow imports."""
        ...

    def extract(self, given: "parameters.ExtractParameters") -> "records.Result":
        """Create or continue a run."""
        ...

    def resume(self, run: "folder.RunFolder", shards: str, changes: "parameters.Changes") -> "records.Result":
        """Continue a run."""
        ...

    def probe(self, given: "probe_parameters.ProbeParameters") -> "records.Result":
        """Create or continue a probe set."""
        ...

    def update(self, given: "dataset_parameters.UpdateParameters") -> "update.Updated":
        """Create or update a dataset."""
        ...

    def export(self, given: "parameters.ExportParameters") -> "list[exporter.ExportedModel]":
        """Export a model."""
        ...

    def rerun(self, given: "feature_parameters.RerunParameters") -> "rerun.Rerun":
        """Make a run again from its record."""
        ...


class Flows(Runner, Protocol):
    """Protocol of a runner with a server, which the commands of operations need."""

    def serve(self, *, port: int, pool: str | None, limit: int) -> None:
        """Run a server and a worker until interrupted."""
        ...

    def deploy(self, *, pool: str | None, notify: str | None) -> "Sequence[str]":
        """Register the deployments with the configured server; return a line for each."""
        ...

    def check(self, pool: str | None) -> "Iterable[Check]":
        """Check the server, and what it needs."""
        ...


_PLAIN = "leave out --plain"


class PlainRunner:
    """Runner that calls the core directly, without Prefect."""

    def session(self) -> AbstractContextManager[None]:
        """Return a null context."""
        return nullcontext()

    def extract(self, given: "parameters.ExtractParameters") -> "records.Result":
        """Call the driver."""
        from genenc_core.run import driver
        from genenc_core.run.parameters import check_engine

        check_engine(given.engine, given.engine_address, given.engine_workers, threads_only=_PLAIN)
        return driver.extract(given)

    def resume(self, run: "folder.RunFolder", shards: str, changes: "parameters.Changes") -> "records.Result":
        """Call the driver."""
        from genenc_core.run import driver
        from genenc_core.run.parameters import check_engine

        check_engine(changes.engine, changes.engine_address, changes.engine_workers, threads_only=_PLAIN)
        return driver.resume(run, shards, changes)

    def probe(self, given: "probe_parameters.ProbeParameters") -> "records.Result":
        """Call the driver."""
        from genenc_core.probing import probe

        return probe.probe(given)

    def update(self, given: "dataset_parameters.UpdateParameters") -> "update.Updated":
        """Call the update."""
        from genenc_core.dataset import update
        from genenc_core.run.parameters import check_engine

        check_engine(given.engine, given.engine_address, given.engine_workers, threads_only=_PLAIN)
        return update.update(given)

    def export(self, given: "parameters.ExportParameters") -> "list[exporter.ExportedModel]":
        """Call the exporter."""
        from genenc_core.run import model_export

        return model_export.export(given)

    def rerun(self, given: "feature_parameters.RerunParameters") -> "rerun.Rerun":
        """Call the core."""
        from genenc_core.features import rerun

        return rerun.rerun(given)
