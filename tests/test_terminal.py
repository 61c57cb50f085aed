"""Text from anywhere reaches terminals, logs, figures and reports as plain text, in as many lines as are ours."""

import csv
import io
import logging
import re
import sys

import pytest
from matplotlib.figure import Figure
from rich.progress import Progress, TextColumn
from rich.table import Table
from rich.text import Text

from diffclip import terminal
from diffclip.errors import Stopped, UserError
from diffclip.reporting.figures import style
from diffclip.reporting.page.render import _plain as in_page
from diffclip.reporting.tables.formats import escape, in_csv, plain
from diffclip.terminal import Pace, Terminal
from diffclip.text import printable, printable_lines

COMMANDS = [
    *("\x1b[2J\x1b]0;title\x07", "\x00", "\x08\x08", "\x7f", "\x85", "\x9b2J", "\x9d0;t\x9c"),  # C0, DEL, C1
    *(
        "\u202egnp.exe",
        "\u2066x\u2069",
        "\u200e",
        "\ufeff",
        "\u00ad",
        "\u2028",
        "\u2029",
    ),  # marks of direction and lines
    *("\udcff", "\ud800", "\ue000"),
    *("a\nERROR: forged", "a\r\nb", "a\rb", "a\tb", "a\x0bb", "a\x0cb"),
]
HARMLESS = [
    "",
    "a b",
    "λ ≥ 0,5 – „ß“",
    "猫",
    "می\u200cخواهم",
    "👨\u200d👩\u200d👧",
    "[/b]",
    ":smile:",
    "$x$",
    r"\frac{",
]


@pytest.mark.parametrize("text", COMMANDS)
def test_commands_are_shown_and_not_given(text):
    shown = printable(f"x{text}y")
    assert shown.isprintable()
    assert re.fullmatch(r"x.+y", shown)
    assert printable_lines(f"{text}\n").count("\n") == text.count("\n") + 1


@pytest.mark.parametrize("text", HARMLESS)
def test_usual_text_stays(text):
    assert printable(text) == text


def test_what_is_escaped_is_as_python_writes_it():
    assert printable("\x1b[2J\u202e\udcff\U000e0001") == r"\x1b[2J\u202e\xff\U000e0001"
    assert printable("a\r\n\tb\u3000c\xa0d") == "a   b c d"


@pytest.fixture
def shown():
    """A terminal with colours, and what was written to it."""
    file = io.StringIO()
    return Terminal(file=file, force_terminal=True, width=200, color_system="truecolor"), file


def is_plain(written):
    """Nothing but what rich itself writes: colours, the cursor of a bar."""
    rest = re.sub(r"\x1b\[[\d;?]*[A-Zmhl]|\r", "", written)
    return all(character.isprintable() or character in "\n\u200c\u200d" for character in rest)


@pytest.mark.parametrize("text", [*COMMANDS, *HARMLESS])
def test_a_terminal_gets_lines_cells_and_bars_as_they_are(shown, text):
    console, file = shown
    console.print(f"name {text} end", highlight=False, soft_wrap=True)
    assert file.getvalue() == f"name {printable(text)} end\n"
    table = Table("column")
    table.add_row(f"cell {text}.")
    console.print(table, Text(f"styled {text}", style="bold"))
    assert f"cell {printable(text)}." in file.getvalue()
    with Progress(TextColumn("{task.description}", markup=False), console=console) as bar:
        bar.add_task(f"bar {text}")
    assert is_plain(re.sub(r"\x1b\[\?25[lh]|\x1b\[1A|\x1b\[2K", "", file.getvalue()))


@pytest.mark.parametrize("text", [*COMMANDS, *HARMLESS])
def test_a_log_line_is_one_line(text, monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    terminal.log_to_stderr(logging.WARNING)
    logging.getLogger("diffclip.x").warning("%s: skipped", text)
    assert stream.getvalue() == f"WARNING: {printable(text)}: skipped\n"
    try:
        raise RuntimeError(text)
    except RuntimeError:
        logging.getLogger("diffclip.x").exception("unexpected")
    assert is_plain(stream.getvalue())


@pytest.mark.parametrize("text", COMMANDS)
def test_errors_are_one_line(text):
    assert str(UserError(f"a{text}", f"b{text}")) == f"a{printable(text)}\n  b{printable(text)}"
    assert str(Stopped(text)) == printable(text)


@pytest.mark.parametrize(
    "text", ["\x1b[2J\x00", "\u202eab", "\udcff", "$\\frac{$", "$x$", "a$b", "<b>&", "a\nb", "%s {x}"]
)
def test_names_in_figures_are_plain(text, tmp_path):
    figure = Figure()
    axes = figure.subplots()
    axes.plot([0, 1], label=text)
    axes.set_title(text)
    figure.suptitle(text)
    axes.legend()
    svg = style.to_svg(figure)
    assert is_plain(svg)
    assert style.to_bytes(figure, "png", dpi=20)
    style.save(figure, tmp_path / "a.pdf")


def test_names_in_tables_and_pages_are_plain():
    for text in COMMANDS:
        assert all(form(text).isprintable() for form in (escape, plain, in_csv))
        assert is_plain(in_page(text))
    assert escape("$_{\x1b") == r"\$\_\{\textbackslash{}x1b"
    assert plain("a|b*c_d`e<f[g") == r"a\|b\*c\_d\`e\<f\[g"
    for formula in ("=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"):
        assert in_csv(formula).startswith("'")
    written = io.StringIO()
    csv.writer(written).writerow([in_csv('=HYPERLINK("x")'), in_csv("DiffCLIP*")])
    assert next(csv.reader([written.getvalue()])) == ['\'=HYPERLINK("x")', "DiffCLIP*"]


def test_the_pace_is_that_of_the_last_minute_of_work(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    pace = Pace()
    pace.start(0.0)
    assert pace.remaining(100.0) is None
    clock[0] = 6.0
    pace.at(30.0)
    assert pace.remaining(100.0) == pytest.approx(70 * 6 / 30)
    clock[0] = 1000.0  # other work, which is not counted
    pace.start(60.0)  # and a step that was not needed after all
    clock[0] = 1002.0
    pace.at(70.0)
    assert pace.seconds == pytest.approx(8)
    assert pace.remaining(100.0) == pytest.approx(30 * 8 / 40)
    for done in range(71, 81):  # the machine gets busy: ten times as long as before, and longer than a minute
        clock[0] += 20.0
        pace.at(float(done))
    assert pace.remaining(100.0) == pytest.approx(20 * 20)
    clock[0] += 90.0
    pace.at(81.0)  # one step takes more than the minute
    assert pace.remaining(100.0) == pytest.approx(19 * 90)


def test_log_lines_go_where_standard_error_goes_now(monkeypatch):
    """rich puts its own in the place of standard error while a bar moves; a line beside it would cut the bar up."""
    handler = terminal._Stderr()
    for _ in range(2):
        monkeypatch.setattr("sys.stderr", io.StringIO())
        handler.handle(logging.makeLogRecord({"msg": "a warning"}))
        assert sys.stderr.getvalue() == "a warning\n"
