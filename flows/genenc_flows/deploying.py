"""Registration of the shipped deployments, their work pool and their automations with a Prefect server."""

import contextlib
import datetime
import importlib.resources
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, cast

import yaml
from prefect import Flow
from prefect.automations import (
    AutomationCore,
    ChangeFlowRunState,
    EventTrigger,
    Posture,
    ResourceSpecification,
    SendNotification,
)
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate, DeploymentUpdate, WorkPoolCreate
from prefect.client.schemas.objects import ConcurrencyLimitConfig, StateType
from prefect.client.schemas.schedules import CronSchedule
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.types.entrypoint import EntrypointType
from prefect.utilities.callables import parameter_schema
from prefect.utilities.importtools import import_object

from genenc_core import errors

if TYPE_CHECKING:
    from prefect.client.schemas.responses import DeploymentResponse
    from prefect.deployments.runner import RunnerDeployment

TAG = "genenc"
POOL = "genenc"
WITHOUT_HEARTBEAT = "genenc: runs without heartbeat are Crashed"
NOTIFICATION = "genenc: notify of runs that fail"
SILENT = datetime.timedelta(minutes=5)
"""Ten heartbeats, and more than a restart of the server takes: a run that is alive must not end Crashed."""
ENDED = ("Completed*", "Failed", "Crashed", "Cancelled")
"""Names of states that end a run; `*` stands for what follows."""


def pool_of_deployments() -> str:
    """Return the work pool of the deployments that are registered, `genenc` if there are none.

    Raises:
        InputError: they are in several pools.
        GenencError: the server refuses a request.
    """
    with _client() as client:
        pools = _pools(_registered(client))
    if len(pools) > 1:
        raise errors.InputError(
            f"the deployments are in the work pools {', '.join(sorted(pools))}: say with --pool which all are to be in"
        )
    return pools.pop() if pools else POOL


def deploy(pool: str | None = None, notify: str | None = None) -> list[str]:
    """Register deployments, pool and automations, or update them; return a line for each.

    Parameters, schedules and limits of a deployment that exists stay as they are on the server.

    Args:
        pool: the work pool; by default each stays in its own, and new ones join the others, else `genenc`.
        notify: a notification block, `TYPE/NAME`, that is told of runs that fail or crash.

    Raises:
        InputError: there is no such block.
        GenencError: the server refuses a request.
    """
    with _client() as client:
        known = _registered(client)
        pools = _pools(known)
        usual = pool or (pools.pop() if len(pools) == 1 else POOL)
        return [
            _make_pool(client, usual),
            *(_register(client, made, found, pool, usual) for made, found in known),
            _automate(client, without_heartbeat()),
            *([] if notify is None else [_automate(client, notification(client, notify))]),
        ]


@contextlib.contextmanager
def _client() -> Iterator[SyncPrefectClient]:
    try:
        with get_client(sync_client=True) as client:
            yield client
    except PrefectHTTPStatusError as error:
        raise errors.GenencError(
            f"the Prefect server refused {error.request.method} {error.request.url.path} "
            f"({error.response.status_code} {error.response.reason_phrase}): check PREFECT_API_URL, and "
            "PREFECT_API_AUTH_STRING or PREFECT_API_KEY"
        ) from error


def shipped() -> "Iterator[RunnerDeployment]":
    """Yield the deployments of `prefect.yaml`, which refer to the flows as modules of the installed package."""
    text = importlib.resources.files("genenc_flows").joinpath("prefect.yaml").read_text(encoding="utf-8")
    for given in yaml.safe_load(text)["deployments"]:
        flow: Flow[..., Any] = import_object(given["entrypoint"])
        limit = given.get("concurrency_limit")
        to_deployment = cast("Callable[..., RunnerDeployment]", flow.to_deployment)
        yield to_deployment(
            given["name"],
            description=given["description"],
            tags=given["tags"],
            parameters=given.get("parameters"),
            schedules=[_schedule(**schedule) for schedule in given.get("schedules", ())] or None,
            concurrency_limit=None if limit is None else ConcurrencyLimitConfig(**limit),
            work_pool_name=given["work_pool"]["name"],
            job_variables=given["work_pool"]["job_variables"],
            entrypoint_type=EntrypointType.MODULE_PATH,
        )


def without_heartbeat() -> AutomationCore:
    """Return the automation that ends a run as Crashed after its process was killed."""
    return AutomationCore(
        name=WITHOUT_HEARTBEAT,
        description="A run's process tells every 30 seconds that it is alive.",
        trigger=EventTrigger(
            after={"prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.heartbeat", *(f"prefect.flow-run.{name}" for name in ENDED)},
            **_of_runs(),
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=SILENT,
        ),
        actions=[
            ChangeFlowRunState(
                name="Crashed",
                state=StateType.CRASHED,
                force=False,
                message="its process ended without a word; what is committed is kept, and the next run continues",
            )
        ],
    )


def notification(client: SyncPrefectClient, block: str) -> AutomationCore:
    """Return the automation that notifies of runs that fail or crash, by a block `TYPE/NAME`.

    Raises:
        InputError: there is no such block.
    """
    kind, _, name = block.partition("/")
    try:
        found = client.read_block_document_by_name(name, kind)
    except ObjectNotFound as error:
        raise errors.InputError(
            f"--notify {block!r}: the server has no such block; create it in the UI under Blocks, and give its "
            "TYPE/NAME, such as slack-webhook/lab"
        ) from error
    return AutomationCore(
        name=NOTIFICATION,
        trigger=EventTrigger(
            expect={"prefect.flow-run.Failed", "prefect.flow-run.Crashed"},
            **_of_runs(),
            posture=Posture.Reactive,
            threshold=1,
        ),
        actions=[
            SendNotification(
                block_document_id=found.id,
                subject="genenc: {{ flow_run.name }} is {{ flow_run.state.name }}",
                body="{{ flow_run.state.message }}\n{{ flow_run|ui_url }}",
            )
        ],
    )


def _of_runs() -> dict[str, Any]:
    """Return what limits a trigger to runs of these deployments."""
    return {
        "match": ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
        "match_related": ResourceSpecification(
            {"prefect.resource.role": ["tag"], "prefect.resource.id": [f"prefect.tag.{TAG}"]}
        ),
    }


def _schedule(*, cron: str, timezone: str, active: bool) -> DeploymentScheduleCreate:
    return DeploymentScheduleCreate(schedule=CronSchedule(cron=cron, timezone=timezone), active=active)


def _make_pool(client: SyncPrefectClient, name: str) -> str:
    try:
        found = client.read_work_pool(name)
    except ObjectNotFound:
        client.create_work_pool(WorkPoolCreate(name=name, type="process"))
        return f"work pool {name} (process): created"
    return f"work pool {name} ({found.type}): there"


def _registered(client: SyncPrefectClient) -> "list[tuple[RunnerDeployment, DeploymentResponse | None]]":
    """Return the shipped deployments, each with what the server has of it."""

    def found(made: "RunnerDeployment") -> "DeploymentResponse | None":
        with contextlib.suppress(ObjectNotFound):
            return client.read_deployment_by_name(made.full_name)
        return None

    return [(made, found(made)) for made in shipped()]


def _pools(known: "list[tuple[RunnerDeployment, DeploymentResponse | None]]") -> set[str]:
    """Return the work pools of the deployments that the server has."""
    return {str(found.work_pool_name) for _, found in known if found is not None}


def _register(
    client: SyncPrefectClient,
    made: "RunnerDeployment",
    found: "DeploymentResponse | None",
    pool: str | None,
    usual: str,
) -> str:
    if found is None:
        made.apply(work_pool_name=usual)
        return f"deployment {made.full_name}: created"
    # RunnerDeployment.apply would replace parameters and schedules by the shipped ones.
    moved: dict[str, Any] = {} if pool is None else {"work_pool_name": pool}
    changes = DeploymentUpdate(
        description=made.description,
        entrypoint=made.entrypoint,
        path=None,
        pull_steps=[],
        tags=sorted({*found.tags, *made.tags}),
        job_variables={**made.job_variables, **found.job_variables, "env": {**_env(made), **_env(found)}},
        parameter_openapi_schema=parameter_schema(import_object(str(made.entrypoint))).model_dump(),
        **moved,
    )
    client.update_deployment(found.id, changes)
    return f"deployment {made.full_name}: updated"


def _env(deployment: "RunnerDeployment | DeploymentResponse") -> dict[str, Any]:
    return dict(deployment.job_variables.get("env") or {})


def _automate(client: SyncPrefectClient, wanted: AutomationCore) -> str:
    found = client.read_automations_by_name(wanted.name)
    if not found:
        client.create_automation(wanted)
        return f"automation {wanted.name!r}: created"
    client.update_automation(found[0].id, wanted.model_copy(update={"enabled": found[0].enabled}))
    return f"automation {wanted.name!r}: updated"
