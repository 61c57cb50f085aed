"""Results and runs as tables, figures and one HTML page. Only commands, the quickstart and sweeps import it."""
