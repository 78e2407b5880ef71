"""Stored rows of a run or of a version of a dataset, as NumPy arrays: the one reader of all that looks at results."""
