"""Results and runs as tables, figures and one HTML file. Nothing else imports this package."""
