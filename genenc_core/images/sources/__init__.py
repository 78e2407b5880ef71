"""Image sources, listings, points files and the manifest."""
