"""Tasks without Prefect's engine: each is one core call on small records."""

from collections.abc import Callable
from pathlib import Path

import pytest
from prefect.states import Failed

import pictures
from genenc_core import errors, spec
from genenc_core.run import model_export, records, session_log, status, worker
from genenc_core.run.parameters import ExtractParameters
from genenc_tasks import extraction, model, reporting


@pytest.fixture
def given(tmp_path: Path) -> ExtractParameters:
    """Return parameters over 7 drawn images in shards of 2."""
    photos = pictures.write_folder(tmp_path / "photos", 7)
    return ExtractParameters(
        images=str(photos),
        model="tiny_models:conv",
        weights="random:0",
        image_size="32",
        out=str(tmp_path / "run"),
        shard_rows=2,
        batch_size=2,
        device="cpu",
    )


@pytest.mark.slow
def test_tasks_in_order_make_a_verified_run(given: ExtractParameters) -> None:
    run = extraction.create_store.fn(given)
    wanted = extraction.plan_shards.fn(run, "pending")
    groups = extraction.grouped(run, wanted, 3)
    assert [group.shards for group in groups] == [(0, 1, 2), (3,)]
    assert [group.label for group in groups] == ["shard 00000-00002 (3 shards), rows 0-5", "shard 00003, rows 6-6"]
    options = records.Options.of(given)
    with session_log.recorded(run, options, command="test"):
        extraction.prepare_encoder.fn(run, options)
        reports = [report for group in groups for report in extraction.encode_shards.fn(group, options)]
        assert extraction.verify_run.fn(run) == 4
        result = extraction.write_provenance.fn(run, wanted, options)
    assert (result.asked, result.failures, result.status.ok, result.status.exit_code) == (4, (), 7, 0)
    assert [(report.shard, report.rows, report.unreadable) for report in reports] == [
        (0, 2, 0),
        (1, 2, 0),
        (2, 2, 0),
        (3, 1, 0),
    ]
    assert extraction.plan_shards.fn(run, "pending") == []
    again = extraction.encode_shards.fn(groups[1], options)
    assert [report.skipped for report in again] == [True]


def test_many_shards_are_few_task_runs_unless_their_number_is_said(
    given: ExtractParameters, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = extraction.create_store.fn(given)

    def sizes(shards_per_task: int | None) -> list[int]:
        return [len(group.shards) for group in extraction.grouped(run, range(4), shards_per_task)]

    assert sizes(None) == [1, 1, 1, 1]
    monkeypatch.setattr(extraction, "MOST_TASK_RUNS", 3)
    assert sizes(None) == [2, 2]
    assert sizes(1) == [1, 1, 1, 1]


def test_a_failed_shard_raises_after_the_others_of_its_group(given: ExtractParameters) -> None:
    photos = Path(given.images)
    for name in ("img_000.png", "img_001.png"):
        (photos / name).write_bytes(b"<html>not found</html>")
    given = given.model_copy(update={"max_failures": "0"})
    run = extraction.create_store.fn(given)
    (group,) = extraction.grouped(run, extraction.plan_shards.fn(run, "pending"), 10)
    with pytest.raises(errors.ShardError, match=r"shard 00000: more than 0 of 2 images failed .*img_000.png"):
        extraction.encode_shards.fn(group, records.Options.of(given))
    assert extraction.plan_shards.fn(run, "failed") == [0]


def test_only_passing_faults_are_tried_again() -> None:
    def retried(error: BaseException) -> bool:
        return extraction.is_transient_failure(extraction.encode_shards, None, Failed(data=error))  # type: ignore[arg-type]

    disk = errors.ShardError(0, "no")
    disk.__cause__ = OSError(5, "input/output error")
    assert retried(disk)
    assert retried(OSError("network"))
    assert not retried(errors.ShardError(0, "more than 0 of 2 images failed"))
    assert not retried(errors.EncoderError("wrong shape"))


@pytest.mark.slow
def test_verify_names_what_is_damaged(given: ExtractParameters) -> None:
    run = extraction.create_store.fn(given)
    (group,) = extraction.grouped(run, extraction.plan_shards.fn(run, "pending"), 10)
    options = records.Options.of(given)
    with session_log.recorded(run, options, command="extract"):
        extraction.encode_shards.fn(group, options)
    (victim, *_) = sorted((Path(run.root) / "features.zarr" / "features").glob("c*"))
    victim.write_bytes(victim.read_bytes()[:-1] + b"x")
    with pytest.raises(errors.StoreError, match=r"damaged: shard 00000: features\.zarr/features/c\."):
        extraction.verify_run.fn(run)


def test_export_tasks_write_and_read_back_a_spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    monkeypatch.setattr(model, "create_markdown_artifact", lambda text, **_options: shown.append(text))
    given = model_export.ExportParameters(
        model="tiny_models:conv", weights="random:0", image_size="32", out=str(tmp_path / "model")
    )
    (done,) = model.export_artifacts.fn(given)
    found = model.generate_spec.fn(done)
    assert found == spec.load_spec(done.spec_path)
    assert found.outputs[0].shape == (6, 4, 4)
    assert '"model_id"' in shown[0]


@pytest.mark.slow
def test_shard_table_puts_trouble_first(given: ExtractParameters) -> None:
    (Path(given.images) / "img_004.png").write_bytes(b"")
    given = given.model_copy(update={"max_failures": "0"})
    run = extraction.create_store.fn(given)
    (group,) = extraction.grouped(run, extraction.plan_shards.fn(run, "0-2"), 3)
    with pytest.raises(errors.ShardError):
        extraction.encode_shards.fn(group, records.Options.of(given))
    table = reporting.shard_table(status.survey(run))
    assert [(row["shard"], row["state"]) for row in table] == [
        (2, "failed"),
        (3, "pending"),
        (0, "committed"),
        (1, "committed"),
    ]
    assert "empty" in str(table[0]["reason"])
    assert {"load_wait s", "encode s", "reduce s", "images/s"} <= set(table[2])
    assert all(list(row) == list(table[2]) for row in table)  # Prefect shows the columns of the first
    assert [row["failed images"] for row in table] == ["", "", 0, 0]


def test_every_task_has_a_name_no_tag_that_asks_for_a_slot_and_no_cache() -> None:
    tasks: list[Callable[..., object]] = [
        extraction.create_store,
        extraction.plan_shards,
        extraction.prepare_encoder,
        extraction.encode_shards,
        extraction.wait_for_others,
        extraction.verify_run,
        extraction.write_provenance,
        reporting.publish_report,
        model.export_artifacts,
        model.generate_spec,
    ]
    for item in tasks:
        assert item.task_run_name
        assert not item.tags
        assert type(item.cache_policy).__name__ == "_None"


def test_passing_fault_is_tried_again(given: ExtractParameters, monkeypatch: pytest.MonkeyPatch) -> None:
    passing = errors.ShardError(1, "stale file handle")
    passing.__cause__ = OSError(116, "stale file handle")
    outcome = worker.Outcome(reports=(), failures=(errors.ShardError(0, "all images broken"), passing))
    monkeypatch.setattr(worker, "encode_shards", lambda *_, **__: outcome)
    run = extraction.create_store.fn(given)
    group = extraction.ShardGroup(run=run, shards=(0, 1), label="both", process="here")
    with pytest.raises(errors.ShardError) as raised:
        extraction.encode_shards.fn(group, records.Options(session="s"))
    assert raised.value is passing
