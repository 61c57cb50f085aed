"""Models for other programs, each with a report of how far its features are from ours."""
