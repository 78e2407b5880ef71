"""Images in, features out: the library under genenc's Prefect tasks and flows."""
