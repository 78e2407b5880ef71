"""Make a probe set, without Prefect."""

from genenc_core.encoding import cancellation
from genenc_core.probing import planning
from genenc_core.probing.parameters import ProbeParameters
from genenc_core.run import driver, records
from genenc_core.run.folder import RunFolder

COMMAND = "probe"


def probe(given: ProbeParameters) -> records.Result:
    """Create or continue a probe set, make its missing shards and verify it; raises as `driver.Session.work`."""
    with cancellation.ensure():
        run = planning.create(given)
        return driver.Session(run, options(run), command=COMMAND).work("pending")


def options(run: RunFolder) -> records.Options:
    """Return the options of a session that makes a probe set: those of a run that do not matter here are its own."""
    return records.Options(session=records.new_session(), device="cpu", max_failures=run.given.max_failures)
