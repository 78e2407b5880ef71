"""Model to artifact, compared with eager, and artifact or module to a guarded encoder."""
