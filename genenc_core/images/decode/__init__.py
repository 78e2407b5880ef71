"""Decoding of image files to RGB pixels at the model's size."""
