"""Where a run folder lies: a local file system or S3."""
