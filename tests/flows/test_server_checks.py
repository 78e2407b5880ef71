"""`genenc doctor` about the server: what is missing is told with the command that makes it."""

from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL

import prefect_site
from genenc_flows import deploying, server_checks


def test_without_a_server_there_is_a_note(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    (found,) = server_checks.check(None)
    assert (found.name, found.state) == ("Prefect server", "note")
    assert "genenc serve" in found.remedy


def test_a_server_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    (found,) = server_checks.check(None)
    assert (found.state, found.found) == ("failed", "no answer at http://127.0.0.1:9/api")


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
def test_what_is_missing_on_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", str(PREFECT_API_URL.value()))

    def found() -> dict[str, tuple[str, str]]:
        return {check.name: (check.state, check.remedy) for check in server_checks.check("genenc")}

    with get_client(sync_client=True) as client:
        prefect_site.clear(client)
    before = found()
    assert before["Prefect server"] == ("ok", "")
    assert before["logs"] == ("ok", "")
    assert before["deployments"] == ("failed", "genenc deploy")
    assert before["work pool genenc"] == ("failed", "genenc deploy")
    assert before["killed runs"][0] == "note"
    deploying.deploy()
    after = found()
    assert after["deployments"] == ("ok", "")
    assert after["killed runs"] == ("ok", "")
    assert after["work pool genenc"] == ("failed", "prefect worker start --pool genenc --limit 1")
    with get_client(sync_client=True) as client:
        client.send_worker_heartbeat("genenc", "lab", heartbeat_interval_seconds=30)
        assert found()["work pool genenc"] == ("ok", "")
        prefect_site.clear(client)


@pytest.mark.slow
def test_other_versions_are_told() -> None:
    class Client:
        def __init__(self, theirs: str) -> None:
            self.theirs = theirs

        def api_version(self) -> str:
            return self.theirs

        def client_version(self) -> str:
            return "3.9.1"

    for theirs, state in {"3.9.4": "ok", "3.8.8": "note", "2.20.0": "failed"}.items():
        found = server_checks._versions(Client(theirs), "http://lab/api")  # type: ignore[arg-type]
        assert found.state == state
        assert (theirs in found.remedy) == (state != "ok")
