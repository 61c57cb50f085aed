"""The `diffclip` command: the table of commands, and how errors end it."""

import logging
import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version

import tyro

from diffclip.commands.attend import attend
from diffclip.commands.classify import classify
from diffclip.commands.convert import convert
from diffclip.commands.data import data, data_list, icons, pack, show, verify
from diffclip.commands.embed import embed
from diffclip.commands.eval import evaluate
from diffclip.commands.export import export
from diffclip.commands.heads import heads
from diffclip.commands.index import index
from diffclip.commands.info import info
from diffclip.commands.models import models
from diffclip.commands.plan import plan
from diffclip.commands.pope import pope
from diffclip.commands.push import push
from diffclip.commands.quickstart import quickstart
from diffclip.commands.repeated import GivenTwice, join
from diffclip.commands.report import report
from diffclip.commands.search import search
from diffclip.commands.serve import serve
from diffclip.commands.sweep import sweep
from diffclip.commands.train import train_command
from diffclip.commands.vlm import answer, fetch, vlm
from diffclip.commands.vlm import pope as vlm_pope
from diffclip.commands.vlm import train as vlm_train
from diffclip.config import Recipe, load_recipe
from diffclip.errors import Stopped, UserError
from diffclip.recipe_files import recipe_argument
from diffclip.terminal import log_to_stderr
from diffclip.text import printable

COMMANDS: dict[str, Callable[..., None]] = {
    "quickstart": quickstart,
    "train": train_command(Recipe()),
    "eval": evaluate,
    "sweep": sweep,
    "report": report,
    "classify": classify,
    "embed": embed,
    "index": index,
    "search": search,
    "serve": serve,
    "attend": attend,
    "heads": heads,
    "info": info,
    "models": models,
    "convert": convert,
    "export": export,
    "push": push,
    "data": data,
    "pope": pope,
    "plan": plan,
    "vlm": vlm,
}
DATA_COMMANDS: dict[str, Callable[..., None]] = {
    "list": data_list,
    "verify": verify,
    "pack": pack,
    "show": show,
    "icons": icons,
}
VLM_COMMANDS: dict[str, Callable[..., None]] = {
    "fetch": fetch,
    "train": vlm_train,
    "answer": answer,
    "pope": vlm_pope,
}
GROUPS = {"data": DATA_COMMANDS, "vlm": VLM_COMMANDS}
"""Commands that have commands of their own."""


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point. Exit status: 0 done, 1 wrong input, 2 wrong arguments, 130 stopped and resumable."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments == ["--version"]:
        print(f"diffclip {version('diffclip')}")
        return
    log_to_stderr(logging.WARNING)
    try:
        program, available = "diffclip", dict(COMMANDS)
        if arguments and arguments[0] in GROUPS:
            group, *arguments = arguments
            program, available = f"diffclip {group}", dict(GROUPS[group])
        elif arguments[:1] == ["train"]:
            arguments = [{"true": "True", "false": "False"}.get(a, a) for a in arguments]  # recipes write them so
            # The recipe gives the defaults of the options, so it is read before they are parsed.
            place = recipe_argument(arguments[1:])
            if place is not None:
                recipe = arguments[1 + place]
                available["train"] = train_command(load_recipe(recipe), recipe, arguments[2 + place :])
        if arguments and arguments[0] in available:
            arguments = [arguments[0], *join(available[arguments[0]], arguments[1:])]
            available = {arguments[0]: available[arguments[0]]}  # tyro reads the options of all that it is given
        about = "CLIP with differential attention. Its version: `diffclip --version`."
        tyro.extras.subcommand_cli_from_dict(available, prog=program, description=about, args=arguments or ["--help"])
    except GivenTwice as error:
        print(printable(f"{program} {arguments[0]}: {error}"), file=sys.stderr)
        sys.exit(2)
    except UserError as error:
        sys.exit(f"diffclip: {error}")
    except PermissionError as error:  # from a look into a folder that belongs to somebody else
        sys.exit(printable(f"diffclip: {error.filename}: {error.strerror}: ask whoever owns it"))
    except Stopped as stopped:
        if os.environ.get("RANK", "0") == "0":  # torchrun's other processes stop for the same reason
            print(f"diffclip: {stopped}", file=sys.stderr)
        sys.exit(130)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
