"""Build the site: every page of the documentation, and the API from docstrings. It opens from the disk, offline.

    python docs/build.py site           # site/index.html
    python docs/build.py --tree         # write the tree of CONTRIBUTING.md anew, from the first line of each docstring

Pages are Markdown, as GitHub shows them; markdown-it-py, which rich needs, makes them HTML. pdoc makes the API.
"""

import ast
import html
import os
import pkgutil
import re
import shutil
import sys
import warnings
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PACKAGE = ROOT / "src" / "diffclip"
OUTSIDE = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title} · diffclip</title><link rel="stylesheet" href="style.css">
</head>
<body>
<nav>{nav}</nav>
<main>
{content}
</main>
</body>
</html>
"""
STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
body { margin: 0; display: flex; font: 16px/1.55 system-ui, sans-serif; }
nav { flex: 0 0 12rem; padding: 1.5rem 1rem; border-right: 1px solid var(--line); box-sizing: border-box; }
nav a { display: block; padding: .1rem 0; text-decoration: none; }
nav a.here { font-weight: 600; }
main { flex: 1; min-width: 0; max-width: 60rem; padding: 1rem 2rem 4rem; }
pre, code { font: .875em/1.5 ui-monospace, monospace; background: var(--soft); }
code { padding: .1em .3em; border-radius: 3px; }
pre { padding: .8rem 1rem; overflow-x: auto; border-radius: 5px; }
pre code { padding: 0; background: none; font-size: 1em; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
th, td { border: 1px solid var(--line); padding: .25rem .6rem; vertical-align: top; }
img { max-width: 100%; }
@media (max-width: 50rem) { body { display: block; } nav { border: 0; } main { padding: 1rem; } }
"""


def pages() -> list[Path]:
    """The pages of the site: those of docs/ in the order in which index.md names them, then those of the root."""
    named = re.findall(r"\]\((\w+\.md)", (DOCS / "index.md").read_text())
    order = ["index.md", *dict.fromkeys(named), *sorted(page.name for page in DOCS.glob("*.md"))]
    inside = [DOCS / name for name in dict.fromkeys(order) if (DOCS / name).exists()]
    return inside + [ROOT / name for name in OUTSIDE]


def anchor(heading: str) -> str:
    """The anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", html.unescape(re.sub(r"<[^>]*>", "", heading)).strip().lower()).replace(" ", "-")


def href(target: str, page: Path, site: Path) -> str:
    """A link of a page as one of the site: to another page, to a copied image, or to a file of the repository."""
    if re.match(r"\w+:|#", target):
        return target
    path, hash_, fragment = target.partition("#")
    there = (page.parent / path).resolve()
    if there.suffix == ".md":
        return f"{there.stem}.html{hash_}{fragment}"
    if there.is_relative_to(DOCS):
        return there.relative_to(DOCS).as_posix()
    return Path(os.path.relpath(there, site)).as_posix()


def api_page(name: str) -> str:
    """Where the API describes a dotted name: the page of its module, and the place on it."""
    parts = name.split(".")
    folders = [PACKAGE.parent.joinpath(*parts[:cut]) for cut in range(1, len(parts) + 1)]
    depth = sum(folder.is_dir() or folder.with_suffix(".py").exists() for folder in folders)
    place = ".".join(parts[depth:])
    return f"api/{'/'.join(parts[:depth])}.html" + (f"#{place}" if place else "")


def title(page: Path) -> str:
    return next(line[2:] for line in page.read_text().splitlines() if line.startswith("# ")).partition(":")[0]


def page_html(page: Path, site: Path) -> str:
    """One page of the site."""
    content = MarkdownIt("commonmark").enable("table").render(page.read_text())
    content = re.sub(
        r"<h([1-6])>(.*?)</h\1>", lambda m: f'<h{m[1]} id="{anchor(m[2])}">{m[2]}</h{m[1]}>', content, flags=re.DOTALL
    )
    content = re.sub(
        r'(href|src)="([^"]*)"', lambda m: f'{m[1]}="{html.escape(href(html.unescape(m[2]), page, site))}"', content
    )
    content = re.sub(
        r"<code>(diffclip(?:\.\w+)+)([^<]*)</code>",
        lambda m: f'<a href="{api_page(m[1])}"><code>{m[1]}{m[2]}</code></a>',
        content,
    )
    links = [
        f'<a href="{other.stem}.html"{" class=here" if other == page else ""}>{html.escape(title(other))}</a>'
        for other in pages()
    ]
    nav = "\n".join([*links, '<a href="api/diffclip.html">API</a>'])
    return PAGE.format(title=html.escape(title(page)), nav=nav, content=content)


def modules() -> list[str]:
    """Every module of the package but those that run something when they are imported."""
    found = (module.name for module in pkgutil.walk_packages([str(PACKAGE)], "diffclip."))
    return ["diffclip", *(name for name in found if not name.endswith("__main__"))]


def build(site: Path, api: list[str] | None = None) -> None:
    """Write the site; `api` are the modules whose docstrings it shows, by default all."""
    import pdoc

    site.mkdir(parents=True, exist_ok=True)
    shutil.copytree(DOCS / "images", site / "images", dirs_exist_ok=True)
    (site / "style.css").write_text(STYLE)
    for page in pages():
        (site / f"{page.stem}.html").write_text(page_html(page, site.resolve()))
    pdoc.render.configure(docformat="google", footer_text="diffclip")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # annotations that only a type checker imports
        pdoc.pdoc(*(modules() if api is None else api), output_directory=site / "api")


def described(path: Path) -> str:
    """What a file is for: the first sentence of its docstring, or its first comment."""
    text = path.read_text(errors="replace")
    if path.suffix == ".py":
        first = (ast.get_docstring(ast.parse(text)) or "").partition("\n\n")[0]
    else:
        lines = text.splitlines()
        comments = [line.lstrip("#/* ") for line in lines[:3] if line.startswith(("#", "//", "/*"))]
        first = comments[0] if comments else ""
    return " ".join(first.split()).removesuffix(".")


def tree(width: int = 120) -> str:
    """The files of the package as an indented list, a line each, with what each is for."""
    lines = ["src/diffclip/"]

    def add(folder: Path, depth: int) -> None:
        files = sorted(path for path in folder.iterdir() if path.is_file() and path.suffix != ".pyc")
        folders = sorted(path for path in folder.iterdir() if path.is_dir() and path.name != "__pycache__")
        for path in files:
            if path.name == "__init__.py" and depth > 1:
                continue
            lines.append(_line(f"{'  ' * depth}{path.name}", described(path), width))
        for path in folders:
            about = described(path / "__init__.py") if (path / "__init__.py").exists() else ""
            lines.append(_line(f"{'  ' * depth}{path.name}/", about, width))
            add(path, depth + 1)

    add(PACKAGE, 1)
    return "\n".join("    " + line for line in lines)


def _line(name: str, about: str, width: int) -> str:
    """A name, and as much of what it is for as fits: up to the end of a clause where there is one."""
    room = width - 4 - max(30, len(name) + 2)
    if len(about) > room:
        clauses = [match.start() for match in re.finditer(r"[,;:.] | \(| [–—] ", about) if 20 < match.start() <= room]
        about = about[: clauses[-1]] if clauses else about[: room - 2].rsplit(" ", 1)[0] + " …"
    return f"{name:<28}  {about}".rstrip()


def write_tree() -> None:
    """Replace the tree in CONTRIBUTING.md."""
    path = ROOT / "CONTRIBUTING.md"
    text = re.sub(r"(?m)^    src/diffclip/\n(    .*\n)+", lambda _: tree() + "\n", path.read_text())
    path.write_text(text)


if __name__ == "__main__":
    if sys.argv[1:] == ["--tree"]:
        write_tree()
    else:
        build(Path(sys.argv[1] if sys.argv[1:] else "site"))
