"""Running models: eager modules and exported files behind one checked encoder."""
