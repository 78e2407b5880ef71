"""On-disk store of a run: its Zarr arrays and the crash-safe commit protocol."""
