"""Templates of jobs: what they expand to is what Prefect and Kubernetes take; the script of arrays really runs."""

import contextlib
import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.utilities.templating import apply_values, find_placeholders

import pictures
import prefect_site
from genenc_core.run import driver, planning, status
from genenc_core.run.folder import RunFolder
from genenc_core.run.parameters import ExtractParameters

FOLDER = Path(__file__).parents[2] / "deployments"
TEXT, COUNT = {"type": "string", "minLength": 1}, {"type": "integer", "minimum": 0}
TEXTS = {"type": "object", "additionalProperties": TEXT}
QUANTITY = {"anyOf": [{"type": "string", "pattern": r"^\d+(\.\d+)?(m|[KMGT]i?)?$"}, COUNT]}


def record(required: tuple[str, ...], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": [*required], "additionalProperties": False}


def many(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": item}


QUANTITIES = {"type": "object", "additionalProperties": QUANTITY}
CONTAINER = record(
    ("name", "image"),
    name={"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"},
    image=TEXT,
    imagePullPolicy={"enum": ["Always", "IfNotPresent", "Never"]},
    args=many(TEXT),
    env=many(record(("name",), name=TEXT, value={"type": "string"})),
    resources=record((), limits=QUANTITIES, requests=QUANTITIES),
    volumeMounts=many(record(("name", "mountPath"), name=TEXT, mountPath={"type": "string", "pattern": "^/"})),
)
POD = record(
    ("containers", "restartPolicy"),
    restartPolicy={"enum": ["Never", "OnFailure"]},
    terminationGracePeriodSeconds=COUNT,
    serviceAccountName=TEXT,
    containers=many(CONTAINER),
    volumes=many(
        record(
            ("name", "persistentVolumeClaim"), name=TEXT, persistentVolumeClaim=record(("claimName",), claimName=TEXT)
        )
    ),
)
JOB = record(
    ("apiVersion", "kind", "metadata", "spec"),
    apiVersion={"const": "batch/v1"},
    kind={"const": "Job"},
    metadata={
        **record((), name=TEXT, generateName=TEXT, namespace=TEXT, labels=TEXTS),
        "anyOf": [{"required": ["name"]}, {"required": ["generateName"]}],
    },
    spec=record(
        ("template",),
        completionMode={"enum": ["Indexed", "NonIndexed"]},
        completions=COUNT,
        parallelism=COUNT,
        backoffLimit=COUNT,
        backoffLimitPerIndex=COUNT,
        ttlSecondsAfterFinished=COUNT,
        template=record(("spec",), spec=POD),
    ),
)
"""The fields of batch/v1 Job that the templates use; any other, or one in another place, is refused."""


def check_job(found: Any) -> None:
    jsonschema.validate(found, JOB)
    pod = found["spec"]["template"]["spec"]
    volumes = {item["name"] for item in pod["volumes"]}
    for container in pod["containers"]:
        assert {item["name"] for item in container["volumeMounts"]} <= volumes
        limits, requests = container["resources"]["limits"], container["resources"]["requests"]
        assert limits["memory"] == requests["memory"]


@pytest.mark.parametrize("values", [{}, {"gpus": 0, "image": "lab/genenc:2", "labels": {"team": "lab"}}])
def test_the_job_template_expands_to_a_job(values: dict[str, Any]) -> None:
    template = json.loads((FOLDER / "kubernetes" / "base-job-template.json").read_text())
    WorkPoolCreate(name="k8s", type="kubernetes", base_job_template=template)
    variables = template["variables"]
    jsonschema.Draft202012Validator.check_schema(variables)
    assert {item.name for item in find_placeholders(template["job_configuration"])} == set(variables["properties"])
    # As a worker does it: what it gives itself, the defaults, then what the deployment gives.
    defaults = {name: item["default"] for name, item in variables["properties"].items() if "default" in item}
    of_worker = {"name": "run", "command": ["python", "-m", "prefect.engine"], "labels": {"prefect.io/flow": "extract"}}
    chosen = {**of_worker, **defaults, "env": {"A": "1"}, **values}
    jsonschema.validate({name: value for name, value in chosen.items() if name != "command"}, variables)
    job = apply_values(template["job_configuration"], chosen, remove_notset=True)
    found = job["job_manifest"]
    (container,) = found["spec"]["template"]["spec"]["containers"]
    container["env"] = [{"name": name, "value": value} for name, value in container["env"].items()]
    check_job(found)
    assert container["resources"]["limits"]["nvidia.com/gpu"] == values.get("gpus", 1)


def test_the_job_template_has_every_setting_that_a_kubernetes_worker_reads() -> None:
    """But for the cluster's address, which is the worker's own."""
    import prefect.server.api.collections_data.views as views

    shipped = Path(next(iter(views.__path__))) / "aggregate-worker-metadata.json"
    theirs = json.loads(shipped.read_text())["prefect-kubernetes"]["kubernetes"]["default_base_job_configuration"]
    ours = json.loads((FOLDER / "kubernetes" / "base-job-template.json").read_text())
    assert set(theirs["job_configuration"]) - set(ours["job_configuration"]) == {"cluster_config"}


def test_the_indexed_job_is_a_job_that_calls_the_script() -> None:
    found = yaml.safe_load((FOLDER / "kubernetes" / "indexed-job.yaml").read_text())
    check_job(found)
    assert found["spec"]["completionMode"] == "Indexed"
    (container,) = found["spec"]["template"]["spec"]["containers"]
    names = {item["name"] for item in container["env"]}
    program, *arguments = container["args"]
    assert set(re.findall(r"\$\((\w+)\)", " ".join(arguments))) <= names
    dockerfile = (FOLDER / "Dockerfile").read_text()
    assert f"install -m 755 /src/deployments/resume.sh /usr/local/bin/{program}" in dockerfile


def test_the_image_installs_extras_that_there_are() -> None:
    import tomllib

    project = tomllib.loads((FOLDER.parent / "pyproject.toml").read_text())["project"]
    (extras,) = re.findall(r"/src\[([\w,]+)\]", (FOLDER / "Dockerfile").read_text())
    assert set(extras.split(",")) <= set(project["optional-dependencies"])


def parameters(tmp_path: Path, out: str, model: str = "conv") -> ExtractParameters:
    values = {"images": str(tmp_path / "photos"), "model": f"tiny_models:{model}", "weights": "random:0"}
    more = {"image_size": "32", "shard_rows": 2, "batch_size": 2, "device": "cpu", "out": str(tmp_path / out)}
    return ExtractParameters.model_validate({**values, **more, "trust": True})


@contextlib.contextmanager
def tasks(tmp_path: Path, run: Path, count: int) -> Any:
    """Start tasks of an array side by side: the script, with this Python's `genenc`."""
    program = tmp_path / "bin" / "genenc"
    program.parent.mkdir(exist_ok=True)
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m genenc_flows.entry "$@"\n')
    program.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(Path(pictures.__file__).parent), *filter(None, sys.path)]),
    }
    command = ["bash", str(FOLDER / "resume.sh"), str(run), "--trust"]
    started = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(count)
    ]
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


@pytest.mark.slow
def test_three_tasks_of_an_array_finish_one_run_with_the_bytes_of_one(tmp_path: Path) -> None:
    assert (FOLDER / "resume.sh").stat().st_mode & stat.S_IXUSR
    (pictures.write_folder(tmp_path / "photos", 24) / "img_003.png").write_bytes(b"")
    driver.extract(parameters(tmp_path, "whole"))
    run = planning.create_run(parameters(tmp_path, "run"))
    with tasks(tmp_path, tmp_path / "run", 3) as started:
        said = [process.communicate(timeout=300)[0] for process in started]
        # An image is unreadable, for which genenc ends with 3.
        assert [process.returncode for process in started] == [0, 0, 0], said
    assert status.run_status(run).complete
    stores = [
        {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
        for root in (tmp_path / "run" / "features.zarr", tmp_path / "whole" / "features.zarr")
    ]
    assert stores[0] == stores[1]


@prefect_site.CAMPAIGN
@pytest.mark.slow
def test_a_task_at_its_time_limit_keeps_whole_shards(tmp_path: Path) -> None:
    pictures.write_folder(tmp_path / "photos", 80)
    planning.create_run(parameters(tmp_path, "run", "slow"))
    commits = tmp_path / "run" / "_txn" / "commits"
    with tasks(tmp_path, tmp_path / "run", 1) as (process,):
        while process.poll() is None and not list(commits.glob("s*.json")):
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=300)[0]
        assert process.returncode == 130, said
    found = status.run_status(RunFolder(tmp_path / "run"))
    assert 0 < found.committed < found.shards
    assert found.failed == ()
