"""Export of models to artifacts, verified against the eager model."""
