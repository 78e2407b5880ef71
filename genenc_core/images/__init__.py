"""Image sources, decoding and loading, with the points of each image."""
