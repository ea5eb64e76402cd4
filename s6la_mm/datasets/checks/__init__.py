"""What can be wrong with image files and annotations, for tools/misc/check_dataset.py."""
