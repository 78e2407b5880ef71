"""Runs and versions as RO-Crates and OpenLineage events: what the records say, in the forms that validators accept."""

import json
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import pytest

import crates
import labelled_photos
import s3_server
from genenc_core import api, errors
from genenc_core.dataset import folder as dataset_folder
from genenc_core.dataset import verify as dataset_verify
from genenc_core.features import history, openlineage, ro_crate
from genenc_core.features.parameters import Agent
from genenc_core.run import driver, out_folder, session_log, status
from genenc_core.run.folder import RunFolder
from genenc_core.run.parameters import Changes
from genenc_core.store.backends.objects import open_objects

EARLIER = Path(__file__).parents[1] / "run" / "earlier_runs.zip"
WHO = {"license": "cc-by-4.0", "agent": "Ada Lovelace <0000-0002-1825-0097>"}


@pytest.fixture(scope="module")
def healed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two sessions: the second one read an image that the first could not."""
    folder = tmp_path_factory.mktemp("healed")
    photos = labelled_photos.write_photos(folder / "photos")
    points = labelled_photos.write_labels(folder / "labels.csv")
    kept = (photos / "img_005.png").read_bytes()
    (photos / "img_005.png").write_bytes(b"no image")
    run = api.extract(**labelled_photos.parameters(folder, photos, "a run", points=str(points), max_failures="100%"))
    (photos / "img_005.png").write_bytes(kept)
    driver.resume(run.folder, "unreadable", Changes(accept_changed=True, trust=True))
    return folder / "a run"


@pytest.fixture
def run(healed: Path, tmp_path: Path) -> Path:
    """A copy of that run."""
    return Path(shutil.copytree(healed, tmp_path / "a run"))


def test_sessions_of_one_second_are_in_the_order_in_which_they_began(monkeypatch: pytest.MonkeyPatch) -> None:
    def session(_run: RunFolder, name: str, stored: history.Stored) -> history.Session:
        milliseconds = {"b": "100", "a": "900"}[name[-1]]
        record = {"started": f"2026-12-01T04:43:06.{milliseconds}+00:00"}
        return history.Session(name=name, record=record, environment={}, stored=stored)

    monkeypatch.setattr(history, "_session", session)
    monkeypatch.setattr(
        session_log, "names", lambda _: ["20261201T044305Z-a", "20261201T044306Z-a", "20261201T044306Z-b"]
    )
    store = SimpleNamespace(committed=lambda: set(), shard_count=0)
    found = history.of(cast(RunFolder, SimpleNamespace(store=store, objects=None)))
    assert [each.name[-3:] for each in found.sessions] == ["Z-a", "Z-b", "Z-a"]


@pytest.mark.slow
def test_a_run_is_a_crate_and_its_files_stay_as_they_were(
    run: Path, unchanged: Callable[[Path], Callable[[], None]]
) -> None:
    check = unchanged(run)
    done = api.export_provenance(run, **WHO)
    assert (done.place, done.sessions, done.complete) == (str(run / ro_crate.FILE), 2, True)
    assert crates.problems(run) == []
    document = crates.read(run)
    every = crates.entities(document)
    first, second = crates.of_type(document, "CreateAction")
    assert [first["name"], second["name"]] == ["genenc extract", "genenc resume"]
    assert "Stored 11 images in 3 shards on cpu." in first["description"]
    assert "Stored 4 images in 1 shard on cpu." in second["description"]
    for action in (first, second):
        assert action["result"] == {"@id": "features.zarr/"}
        assert action["agent"] == {"@id": "https://orcid.org/0000-0002-1825-0097"}
        assert {"@id": "#model"} in action["object"]
        assert {"@id": "#images"} in action["object"]
    opened = RunFolder(run)
    values = {each["name"]: each["value"] for each in crates.of_type(document, "PropertyValue") if "value" in each}
    assert values["weights_sha256"] == opened.identity["weights"]
    assert (values["image_size"], values["shard_rows"]) == ("32", 4)
    assert every["./"]["license"] == {"@id": "https://spdx.org/licenses/CC-BY-4.0"}
    assert every["images.parquet"]["sha256"] == opened.store.files["images.parquet"][1]
    genenc = every[first["instrument"]["@id"]]
    assert genenc["softwareVersion"].startswith("0.1.0")
    assert {"Python", "torch", "zarr"} <= {every[each["@id"]]["name"] for each in genenc["softwareRequirements"]}
    before = (run / ro_crate.FILE).read_bytes()
    api.export_provenance(run, **WHO)
    assert (run / ro_crate.FILE).read_bytes() == before, "the same crate each time"
    assert status.verify_run(opened).ok
    (run / ro_crate.FILE).unlink()
    check()


@pytest.mark.slow
def test_the_public_validator_accepts_it(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline: it is given the part of the context that is used, which it would fetch."""
    validator = pytest.importorskip("rocrate_validator.services")
    from rdflib.plugins.shared.jsonld import context
    from rocrate_validator.utils.http import HttpRequester

    served = {"@context": crates.CONTEXT}
    run = run.rename(tmp_path / "run")  # the validator takes no folder with a space in its name

    def get(_self: object, url: str, **_options: object) -> SimpleNamespace:
        assert url == "https://w3id.org/ro/crate/1.1/context"
        return SimpleNamespace(status_code=200, headers={"Content-Type": "application/ld+json"}, json=lambda: served)

    monkeypatch.setattr(context, "source_to_json", lambda *_given, **_options: (served, None))
    monkeypatch.setattr(HttpRequester, "get", get, raising=False)

    def found() -> list[str]:
        asked = {"rocrate_uri": str(run), "profile_identifier": "process-run-crate", "requirement_severity": "REQUIRED"}
        return [str(issue.message) for issue in validator.validate(asked).get_issues()]

    api.export_provenance(run, **WHO)
    assert found() == []
    text = (run / ro_crate.FILE).read_text()
    (run / ro_crate.FILE).write_text(text.replace('"SoftwareApplication"', '"Person"'))
    assert any("instrument" in message for message in found())


@pytest.mark.slow
def test_a_crate_of_its_own_has_copies_of_the_records(run: Path, tmp_path: Path) -> None:
    done = api.export_provenance(run, out=tmp_path / "crate")
    assert done.place == str(tmp_path / "crate" / ro_crate.FILE)
    assert crates.problems(tmp_path / "crate") == []
    names = crates.entities(crates.read(tmp_path / "crate"))
    assert f"{run.as_uri()}/features.zarr/" in names
    assert (tmp_path / "crate" / "images.parquet").read_bytes() == (run / "images.parquet").read_bytes()
    assert not (tmp_path / "crate" / "features.zarr").exists()
    assert not (run / ro_crate.FILE).exists()
    assert names["./"]["license"] == ro_crate.NO_LICENSE
    with pytest.raises(errors.InputError, match="exists: give a new name"):
        api.export_provenance(run, out=tmp_path / "crate")
    with pytest.raises(errors.InputError, match="is inside"):
        api.export_provenance(run, out=run / "crate")


@pytest.mark.slow
def test_what_is_in_its_place_and_no_file_is_not_replaced(run: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (run / ro_crate.FILE).symlink_to(tmp_path / "mine")
    with pytest.raises(errors.InputError, match="is not a file: move it away"):
        api.export_provenance(run)
    (run / ro_crate.FILE).unlink()
    (run / ro_crate.FILE).hardlink_to(tmp_path / "mine")
    api.export_provenance(run)
    assert (tmp_path / "mine").read_text() == "mine"


@pytest.mark.slow
def test_a_version_of_a_dataset_is_a_crate(grown: Path) -> None:
    api.export_provenance(grown, license="https://example.org/terms")
    assert crates.problems(grown) == []
    document = crates.read(grown)
    every = crates.entities(document)
    assert every["./"]["version"] == "3"
    assert len(crates.of_type(document, "CreateAction")) == 3
    assert {"dataset.json", "versions/v000003.json", "parts/p000002/", "parts/p000002/features.zarr/"} <= every.keys()
    assert dataset_verify.verify(dataset_folder.DatasetFolder(grown)).problems == ()
    api.export_provenance(grown, version=1)
    assert crates.problems(grown) == []
    assert "parts/p000002/" not in crates.entities(crates.read(grown))
    with pytest.raises(errors.InputError, match="is a part of the dataset"):
        api.export_provenance(grown / "parts" / "p000001")


@pytest.mark.slow
def test_probes_and_runs_of_earlier_versions_are_crates(tmp_path: Path, extract: Any, labels: Path) -> None:
    extract("run", "maps=none@float32")
    api.probe(tmp_path / "run", str(tmp_path / "probes"), points=str(labels), products=["p=spatial_point(cell)"])
    api.export_provenance(tmp_path / "probes")
    assert crates.problems(tmp_path / "probes") == []
    document = crates.read(tmp_path / "probes")
    (action,) = crates.of_type(document, "CreateAction")
    assert {"@id": "provenance/source.json"} in action["object"]
    assert "Made from stored maps of another run." in crates.entities(document)["./"]["description"]
    with zipfile.ZipFile(EARLIER) as archive:
        archive.extractall(tmp_path / "earlier")
    for name in ("own-code", "artifact"):
        done = api.export_provenance(tmp_path / "earlier" / name)
        assert (done.complete, crates.problems(tmp_path / "earlier" / name)) == (False, [])
        assert "Not complete: 2 of 3 shards." in (tmp_path / "earlier" / name / ro_crate.FILE).read_text()


@pytest.mark.slow
def test_what_a_session_lost_is_left_out(run: Path) -> None:
    shutil.rmtree(run / "provenance" / "runs")
    api.export_provenance(run)
    document = crates.read(run)
    assert [problem for problem in crates.problems(run) if "datePublished" not in problem] == []
    assert "startTime" not in crates.of_type(document, "CreateAction")[0]
    assert openlineage.lines(history.of(RunFolder(run))) == b"", "no record says when anything happened"


def _facets(event: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for part in (event["run"], event["job"], *event["inputs"], *event["outputs"]):
        for kind in ("facets", "inputFacets", "outputFacets"):
            yield from part.get(kind, {}).items()


@pytest.mark.slow
def test_sessions_are_events(run: Path) -> None:
    done = api.export_provenance(run, format="openlineage")
    events = [json.loads(line) for line in Path(done.place).read_text().splitlines()]
    assert [event["eventType"] for event in events] == ["START", "COMPLETE", "START", "COMPLETE"]
    assert len({event["run"]["runId"] for event in events}) == 2
    for event in events:
        assert {"eventTime", "run", "job", "inputs", "outputs", "producer", "schemaURL"} <= event.keys()
        for name, facet in _facets(event):
            assert facet["_producer"] == "pkg:generic/genenc@0.1.0" or name in (
                "version",
                "datasetType",
                "documentation",
            )
            assert facet["_schemaURL"].startswith("https://openlineage.io/spec/facets/")
    images, model = events[-1]["inputs"]
    (features,) = events[-1]["outputs"]
    opened = RunFolder(run)
    assert (features["namespace"], features["name"]) == ("file", str(run / "features.zarr"))
    assert features["facets"]["version"]["datasetVersion"] == f"sha256:{opened.store.plan.fingerprint}"
    quality = features["facets"]["dataQualityMetrics"]
    assert (quality["rowCount"], quality["columnMetrics"]["features"]) == (11, {"count": 11, "nullCount": 0})
    fields = {each["name"]: each["type"] for each in features["facets"]["schema"]["fields"]}
    assert fields["probes"].startswith("float32[2, ")
    assert [event["outputs"][0]["outputFacets"]["outputStatistics"]["rowCount"] for event in events] == [11, 11, 4, 4]
    assert images["inputFacets"]["inputStatistics"]["rowCount"] == 11
    assert model["facets"]["version"]["datasetVersion"] == f"sha256:{opened.identity['weights']}"


@pytest.mark.slow
def test_openlineage_s_own_classes_take_the_events(run: Path) -> None:
    client = pytest.importorskip("openlineage.client.event_v2")
    facets = pytest.importorskip("openlineage.client.facet_v2")
    modules = [each for each in vars(facets).values() if isinstance(each, ModuleType)]
    known = {each.__name__: each for module in modules for each in vars(module).values() if isinstance(each, type)}
    for event in openlineage.events(history.of(RunFolder(run))):
        client.RunEvent(
            eventTime=event["eventTime"],
            run=client.Run(runId=event["run"]["runId"]),
            job=client.Job(namespace=event["job"]["namespace"], name=event["job"]["name"]),
            eventType=client.RunState[event["eventType"]],
            producer=event["producer"],
        )
        for name, facet in _facets(event):
            kind = known[facet["_schemaURL"].rpartition("/")[2]]
            made = kind(**{key: value for key, value in facet.items() if not key.startswith("_")})
            assert made._schemaURL == facet["_schemaURL"], name


@pytest.mark.slow
def test_on_s3(healed: Path, s3: s3_server.Server, bucket: str) -> None:
    objects, own = open_objects(bucket), open_objects(healed)
    for key, _ in own.walk(""):
        objects.write_new(key, own.read(key, most=None))
    assert api.export_provenance(bucket).place == f"{bucket}/{ro_crate.FILE}"
    assert json.loads(objects.read(ro_crate.FILE))["@graph"][1]["name"] == "Image features of python/tiny_models:conv"
    out_folder.check(bucket)  # the command that made the run may be given again
    api.export_provenance(bucket, format="openlineage")
    (event, *_) = map(json.loads, objects.read(openlineage.FILE).splitlines())
    scheme, _, rest = bucket.partition("://")
    host, _, prefix = rest.partition("/")
    assert event["outputs"][0]["namespace"] == f"{scheme}://{host}"
    assert event["outputs"][0]["name"] == f"{prefix}/features.zarr"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("Ada Lovelace", Agent("Ada Lovelace", None)),
        ("Ada <0000-0002-1825-0097>", Agent("Ada", "https://orcid.org/0000-0002-1825-0097")),
        ("Ada <https://orcid.org/0000-0002-1694-233X>", Agent("Ada", "https://orcid.org/0000-0002-1694-233X")),
        ("Ada <https://example.org/ada>", Agent("Ada", "https://example.org/ada")),
    ],
)
def test_agents(given: str, expected: Agent) -> None:
    assert Agent.parse(given) == expected


@pytest.mark.parametrize("given", ["", "<0000-0002-1825-0097>", "Ada <0000-0002-1825-0098>", "Ada <me>", "A <b> c"])
def test_what_is_no_agent(given: str) -> None:
    with pytest.raises(ValueError, match=r"is no person|does not check|neither"):
        Agent.parse(given)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("cc0-1.0", "https://spdx.org/licenses/CC0-1.0"),
        ("https://example.org/terms", "https://example.org/terms"),
        ("ask the lab", None),
        ("proprietary", None),
        ("MIT OR Apache-2.0", None),
    ],
)
def test_licences(given: str, expected: str | None) -> None:
    assert ro_crate.license_url(given) == expected
