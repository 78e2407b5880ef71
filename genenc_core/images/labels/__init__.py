"""Labels of images: named points from tables and from the files of annotation tools, matched to images by name."""
