"""One HTML page of a report."""
