"""The run folder's arrays and the protocol that keeps every committed row true."""
