"""Images inside files: tar archives, videos, stacks and arrays, and tables with images in their cells."""
