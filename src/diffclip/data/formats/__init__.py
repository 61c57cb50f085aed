"""The forms in which data sets lie on disk."""
