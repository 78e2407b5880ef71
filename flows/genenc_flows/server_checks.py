"""Checks of the Prefect server for `genenc doctor`: it responds, and has deployments, a pool and a worker."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from genenc_core import errors
from genenc_core.cli.checks import FAILED, NOTE, Check
from genenc_flows import local_server

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

SERVER = "Prefect server"
LOGGERS = "PREFECT_LOGGING_EXTRA_LOGGERS"


def check(pool: str | None) -> Iterator[Check]:
    """Yield the checks; without a configured server there is only a note."""
    url = local_server.configured_url()
    if url is None:
        yield Check(
            name=SERVER,
            state=NOTE,
            found="none is named, so each command starts one for itself",
            remedy="for the UI and schedules run genenc serve, or set PREFECT_API_URL",
        )
        return
    with local_server.connected(url) as server:
        if not server.answers():
            yield Check(
                name=SERVER,
                state=FAILED,
                found=f"no answer at {url}",
                remedy="start it (genenc serve, prefect server start), or unset PREFECT_API_URL",
            )
            return
        yield from _of_server(url, pool)


def _of_server(url: str, pool: str | None) -> Iterator[Check]:
    try:
        from prefect.client.orchestration import get_client
    except Exception as error:  # beside some packages it raises anything
        remedy = "install the packages that genenc needs: pip install --upgrade genenc"
        yield Check(
            name=SERVER, state=FAILED, found=f"prefect cannot be imported: {errors.reason(error)}", remedy=remedy
        )
        return
    try:
        with get_client(sync_client=True) as client:
            yield _versions(client, url)
            yield _loggers()
            yield from _deployments(client, pool)
            yield _heartbeat(client)
    except Exception as error:  # the client may raise any network error
        yield Check(
            name=SERVER,
            state=FAILED,
            found=f"{url}: {errors.reason(error)}",
            remedy="check PREFECT_API_URL, and PREFECT_API_AUTH_STRING or PREFECT_API_KEY",
        )


def _versions(client: "SyncPrefectClient", url: str) -> Check:
    theirs, ours = client.api_version(), client.client_version()
    words = f"{url}, version {theirs}"
    if theirs.split(".")[:2] == ours.split(".")[:2]:
        return Check(name=SERVER, found=words)
    return Check(
        name=SERVER,
        state=FAILED if theirs.split(".")[0] != ours.split(".")[0] else NOTE,
        found=f"{words}, but this client is {ours}",
        remedy=f"pip install 'prefect=={theirs}', or upgrade the server",
    )


def _loggers() -> Check:
    from prefect.settings import get_current_settings

    if "genenc_core" in (get_current_settings().logging.extra_loggers or ()):
        return Check(name="logs", found=f"{LOGGERS} names genenc_core")
    return Check(
        name="logs",
        state=NOTE,
        found="in your own flows the core's log does not appear in the UI",
        remedy=f"export {LOGGERS}=genenc_core",
    )


def _deployments(client: "SyncPrefectClient", pool: str | None) -> Iterator[Check]:
    from prefect.exceptions import ObjectNotFound

    from genenc_flows import deploying

    pools: set[str] = set()
    missing = []
    for made in deploying.shipped():
        try:
            pools.add(str(client.read_deployment_by_name(made.full_name).work_pool_name))
        except ObjectNotFound:
            missing.append(made.full_name)
    if missing:
        yield Check(
            name="deployments", state=FAILED, found=f"not registered: {', '.join(missing)}", remedy="genenc deploy"
        )
    else:
        yield Check(name="deployments", found="all shipped ones are registered")
    for name in sorted(pools) if pool is None else [pool]:
        yield _workers(client, name)


def _workers(client: "SyncPrefectClient", pool: str) -> Check:
    from prefect.exceptions import ObjectNotFound

    start = f"prefect worker start --pool {pool} --limit 1"
    try:
        found = client.read_work_pool(pool)
    except ObjectNotFound:
        return Check(name=f"work pool {pool}", state=FAILED, found="there is none", remedy="genenc deploy")
    if found.is_paused:
        resume = f"prefect work-pool resume {pool}"
        return Check(name=f"work pool {pool}", state=FAILED, found="paused", remedy=resume)
    workers = [each for each in client.read_workers_for_work_pool(pool) if str(each.status).endswith("ONLINE")]
    if not workers:
        return Check(name=f"work pool {pool}", state=FAILED, found="no worker is online", remedy=start)
    return Check(name=f"work pool {pool}", found=f"{found.type}, workers online: {len(workers)}")


def _heartbeat(client: "SyncPrefectClient") -> Check:
    from genenc_flows import deploying

    found = client.read_automations_by_name(deploying.WITHOUT_HEARTBEAT)
    if any(each.enabled for each in found):
        return Check(name="killed runs", found="end Crashed, by an automation")
    return Check(
        name="killed runs",
        state=NOTE,
        found="stay Running: the automation is missing or disabled",
        remedy="genenc deploy, and enable it in the UI under Automations",
    )
