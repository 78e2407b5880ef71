"""How far a run is, counted from its commit records."""

from dataclasses import dataclass

from genenc_core.store import layout, run_store


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSummary:
    """Rows by state, and shards."""

    rows: int
    ok: int
    unreadable: int
    not_written: int
    shards: int
    committed: int


def summarize(store: run_store.RunStore) -> StoreSummary:
    """Count rows by state; reads every commit record and no data.

    Raises:
        StoreError: a record is damaged.
    """
    found = [record for shard in sorted(store.committed()) if (record := store.record(shard)) is not None]
    ok, unreadable = (
        sum(record.status_counts[layout.STATUS_MEANINGS[value]] for record in found)
        for value in (layout.OK, layout.UNREADABLE)
    )
    return StoreSummary(
        rows=store.plan.rows,
        ok=ok,
        unreadable=unreadable,
        not_written=store.plan.rows - ok - unreadable,
        shards=store.shard_count,
        committed=len(found),
    )
