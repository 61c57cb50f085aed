"""The paper's tables, filled, as Markdown, LaTeX and CSV."""
