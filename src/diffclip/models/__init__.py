"""The two CLIP towers, with standard or differential attention, and their weights on disk."""
