"""A table as Markdown, LaTeX and CSV. Numbers are percent to one decimal; the CSV has them in full."""

import csv
import io
from itertools import groupby

from diffclip.reporting.tables.fill import Cell, Row, Table
from diffclip.text import percent, printable

PAPER = "paper"
LATEX = {
    "\\": r"\textbackslash{}", "%": r"\%", "_": r"\_", "&": r"\&", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "†": r"$^\dagger$", "±": r"$\pm$", "λ": r"$\lambda$",
    "ε": r"$\varepsilon$", "−": r"$-$", "·": r"$\cdot$", "–": "--", "“": "``", "”": "''", "→": r"$\to$",
}  # fmt: skip


def value_text(cell: Cell) -> str:
    """ "72.5", "72.5 ± 0.1", or nothing."""
    return percent(cell.mean, sd=cell.sd)


def gain_text(cell: Cell) -> str:
    """ "+3.7", "+0.3 ns" where it is not significant, or nothing."""
    if cell.gain is None:
        return ""
    return percent(cell.gain, signed=True) + (" ns" if cell.significant is False else "")


def model_text(row: Row) -> str:
    """The row's model, marked where its numbers are the paper's."""
    return f"{row.label} ({PAPER})" if row.paper else row.label


def to_markdown(table: Table) -> str:
    """A GitHub table with its title and notes."""
    layout = table.layout
    width = len(layout.columns)
    lines = [
        "| Pretraining | Model | " + " | ".join(plain(column.name) for column in layout.columns) + " |",
        "|---|---|" + "---:|" * width,
    ]
    for block, rows in zip(layout.blocks, table.rows, strict=True):
        if block.title and rows:
            lines.append(f"| **{block.title}** | |" + " |" * width)
        for row in rows:
            cells = []
            for cell in row.cells:
                value = f"**{value_text(cell)}**" if cell.best else value_text(cell)
                gain = gain_text(cell)
                cells.append(f"{value} ({gain})" if gain else value)
            texts = [plain(row.group), plain(model_text(row)), *cells]
            lines.append("| " + " | ".join(texts) + " |")
    notes = [text for note in table.notes for text in ("", plain(note))]
    return "\n".join([f"**{plain(layout.title)}**", "", *lines, *notes, ""])


def to_latex(table: Table) -> str:
    """A table environment for a paper that loads booktabs and, for wide tables, graphicx."""
    layout = table.layout
    width, caption = len(layout.columns), layout.title.partition(": ")[2] or layout.title
    lines = [
        "% needs \\usepackage{booktabs,graphicx}",
        r"\begin{table}[t]",
        r"\centering",
        rf"\caption{{{escape(caption[:1].upper() + caption[1:])}. {escape(' '.join(table.notes))}}}",
        rf"\label{{tab:{layout.name}}}",
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%  a wide table shrinks, a small one stays",
        rf"\begin{{tabular}}{{ll{'c' * width}}}",
        r"\toprule",
    ]
    if any(column.over for column in layout.columns):
        cells, rules, place = [], [], 3
        for over, columns in groupby(layout.columns, key=lambda column: column.over):
            span = len(list(columns))
            cells.append(rf"\multicolumn{{{span}}}{{c}}{{{escape(over)}}}")
            if over:
                rules.append(rf"\cmidrule(lr){{{place}-{place + span - 1}}}")
            place += span
        lines += [" & ".join(["", "", *cells]) + r" \\", " ".join(rules)]
    heads = ["Pretraining", "Model", *(escape(column.label) for column in layout.columns)]
    lines += [" & ".join(heads) + r" \\", r"\midrule"]
    for number, (block, rows) in enumerate(zip(layout.blocks, table.rows, strict=True)):
        if not rows:
            continue
        if number and any(table.rows[:number]):
            lines.append(r"\midrule")
        if block.title:
            lines.append(rf"\multicolumn{{{width + 2}}}{{l}}{{\textit{{{escape(block.title)}}}}} \\")
        for row in rows:
            lines.append(" & ".join([escape(row.group), escape(model_text(row)), *map(_latex, row.cells)]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}}", r"\end{table}", ""])


def to_csv(table: Table) -> str:
    """One line a row; percent to four decimals. sd, gain and interval columns stand where a row has them."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    rows = [
        (block.title, row) for block, of_block in zip(table.layout.blocks, table.rows, strict=True) for row in of_block
    ]
    parts = [
        "",
        *(part for part in ("sd", "gain", "low", "high") if any(_part(c, part) for _, r in rows for c in r.cells)),
    ]
    heads = [f"{column.name} {part}".strip() for column in table.layout.columns for part in parts]
    writer.writerow(["task", "pretraining", "model", "source", *map(in_csv, heads)])
    for title, row in rows:
        source = PAPER if row.paper else "measured"
        names = map(in_csv, (title, row.group, row.label))
        writer.writerow([*names, source, *(_part(c, part) for c in row.cells for part in parts)])
    return buffer.getvalue()


def escape(text: str) -> str:
    """Text with what LaTeX would read as a command made harmless, and the project's signs in its maths."""
    return "".join(LATEX.get(character, character) for character in printable(text))


def _latex(cell: Cell) -> str:
    value, gain = escape(value_text(cell)), escape(gain_text(cell))
    return (rf"\textbf{{{value}}}" if cell.best else value) + (rf" {{\scriptsize({gain})}}" if gain else "")


def plain(text: str) -> str:
    """Text that Markdown shows as it is: DiffCLIP* starts no emphasis, a bar no cell."""
    for character in "\\|*_`<[":
        text = text.replace(character, f"\\{character}")
    return printable(text)


def in_csv(text: str) -> str:
    """Text of a cell that no spreadsheet takes for a formula."""
    return printable(f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text)


def _part(cell: Cell, part: str) -> str:
    interval = cell.difference.interval if cell.difference else None
    number = {
        "": cell.mean,
        "sd": cell.sd,
        "gain": cell.gain,
        "low": interval.low if interval else None,
        "high": interval.high if interval else None,
    }[part]
    return "" if number is None else f"{100 * number:.4f}"
