"""A look at images, labels and cost before a run."""
