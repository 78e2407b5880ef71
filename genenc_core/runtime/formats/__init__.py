"""Export formats, one module each, and their table."""
