"""`genenc deploy`: what it registers is what the package ships; what people changed on the server stays."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentUpdate
from prefect.client.schemas.schedules import CronSchedule
from prefect.exceptions import PrefectHTTPStatusError
from prefect.utilities.importtools import import_object

import prefect_site
from genenc_core import errors
from genenc_flows import deploying

NIGHTLY = "update_dataset/nightly"


@pytest.fixture
def client(prefect_server: None) -> Iterator[SyncPrefectClient]:
    """A client of a server without deployments; what was registered is removed afterwards."""
    with get_client(sync_client=True) as found:
        prefect_site.clear(found)
        yield found
        prefect_site.clear(found)


@pytest.mark.slow
def test_deployments_refer_to_the_installed_package_and_may_be_registered_again(client: SyncPrefectClient) -> None:
    first = deploying.deploy()
    assert [line.rpartition(": ")[2] for line in first] == ["created"] * 8
    again = deploying.deploy()
    assert [line.rpartition(": ")[2] for line in again] == ["there", *["updated"] * 7]
    for made in deploying.shipped():
        found = client.read_deployment_by_name(made.full_name)
        assert import_object(found.entrypoint).name == made.flow_name
        assert not found.pull_steps
        assert found.path is None
        assert found.work_pool_name == deploying.POOL
        assert found.job_variables["env"]["PREFECT_LOGGING_EXTRA_LOGGERS"] == "genenc_core"
        assert client.read_flow(found.flow_id).name == made.flow_name
    nightly = client.read_deployment_by_name(NIGHTLY)
    assert [(item.schedule.cron, item.schedule.timezone, item.active) for item in nightly.schedules] == [
        ("0 3 * * *", "UTC", False)
    ]
    assert nightly.global_concurrency_limit.limit == 1
    assert nightly.concurrency_options.collision_strategy.value == "ENQUEUE"
    assert len(client.read_automations_by_name(deploying.WITHOUT_HEARTBEAT)) == 1


@pytest.mark.slow
def test_what_people_changed_on_the_server_stays(client: SyncPrefectClient) -> None:
    deploying.deploy()
    nightly = client.read_deployment_by_name(NIGHTLY)
    own = {"A": "1", "PREFECT_LOGGING_EXTRA_LOGGERS": "mine"}
    mine: dict[str, Any] = {"given": {"images": "/photos", "model": "resnet18", "out": "/mine"}}
    patch = {
        "parameters": mine,
        "tags": ["lab"],
        "concurrency_limit": 2,
        "job_variables": {"env": own, "working_dir": "/mine"},
    }
    client.request("PATCH", "/deployments/{id}", path_params={"id": nightly.id}, json=patch)
    client.update_deployment_schedule(
        nightly.id,
        nightly.schedules[0].id,
        active=True,
        schedule=CronSchedule(cron="5 4 * * *", timezone="Europe/Berlin"),
    )
    (automation,) = client.read_automations_by_name(deploying.WITHOUT_HEARTBEAT)
    client.pause_automation(automation.id)
    deploying.deploy()
    found = client.read_deployment_by_name(NIGHTLY)
    assert found.parameters == mine
    assert found.tags == ["genenc", "lab"]
    assert found.global_concurrency_limit.limit == 2
    # Variables that a later version ships are added.
    assert found.job_variables["working_dir"] == "/mine"
    assert found.job_variables["env"] == {**nightly.job_variables["env"], **own}
    assert [(item.schedule.cron, item.schedule.timezone, item.active) for item in found.schedules] == [
        ("5 4 * * *", "Europe/Berlin", True)
    ]
    (automation,) = client.read_automations_by_name(deploying.WITHOUT_HEARTBEAT)
    assert not automation.enabled


@pytest.mark.slow
def test_the_documented_schedule_is_made_as_documented(client: SyncPrefectClient) -> None:
    """The command takes no parameters; a run of it has those of the deployment."""
    deploying.deploy()
    guide = (Path(__file__).parents[2] / "deployments" / "README.md").read_text()
    (line,) = [line for line in guide.splitlines() if line.startswith("prefect deployment schedule create")]
    assert NIGHTLY in line
    # The command itself is a process of some seconds: see test_operations.py.


@pytest.mark.slow
def test_notifications_go_through_a_block_of_the_server(client: SyncPrefectClient) -> None:
    with pytest.raises(errors.InputError, match=r"--notify 'slack-webhook/none': the server has no such block"):
        deploying.deploy(notify="slack-webhook/none")
    name = f"lab-{uuid4()}"
    block = CustomWebhookNotificationBlock(name="lab", url="http://127.0.0.1:9/")
    block.save(name)
    deploying.deploy(notify=f"custom-webhook/{name}")
    (found,) = client.read_automations_by_name(deploying.NOTIFICATION)
    (action,) = found.actions
    assert action.block_document_id == block._block_document_id
    assert found.trigger.match_related.model_dump() == {
        "prefect.resource.role": ["tag"],
        "prefect.resource.id": ["prefect.tag.genenc"],
    }


@pytest.mark.slow
def test_another_pool(client: SyncPrefectClient) -> None:
    deploying.deploy()
    deploying.deploy(pool="lab")
    assert client.read_deployment_by_name(NIGHTLY).work_pool_name == "lab"
    deploying.deploy()
    assert client.read_deployment_by_name(NIGHTLY).work_pool_name == "lab"
    assert deploying.pool_of_deployments() == "lab"
    client.update_deployment(client.read_deployment_by_name(NIGHTLY).id, DeploymentUpdate(work_pool_name="genenc"))
    with pytest.raises(errors.InputError, match=r"work pools genenc, lab: say with --pool"):
        deploying.pool_of_deployments()
    deploying.deploy(pool="genenc")
    client.delete_work_pool("lab")


@pytest.mark.usefixtures("prefect_server")
def test_a_server_that_refuses_is_told_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    request = httpx.Request("GET", "http://127.0.0.1:4200/api/deployments/name/x/y")

    def refuse(*_: object) -> None:
        raise PrefectHTTPStatusError("refused", request=request, response=httpx.Response(401, request=request))

    monkeypatch.setattr(deploying, "_registered", refuse)
    with pytest.raises(errors.GenencError, match=r"401 Unauthorized.*PREFECT_API_AUTH_STRING"):
        deploying.deploy()
