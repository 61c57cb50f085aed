"""`python -m diffclip`, the same as `diffclip`; what `torchrun -m diffclip` starts in every process."""

import errno
import io
import os
import signal
import sys
import tempfile
import time
from typing import Any

# What several processes can do together.
SHARED = ("train", "eval")
# Seconds that a process which is not the first takes to end badly. Where all have the same error, or where this one
# only lost its company, torchrun ends it meanwhile, and the one that knows the reason has said it.
PATIENCE = 3.0
# What the environment is unless the user says otherwise, before any library is loaded that reads it.
SETTINGS = {
    "HF_HUB_DISABLE_TELEMETRY": "1",  # the hub would be told which libraries call it
    "DO_NOT_TRACK": "1",
}
# Threads that spin while they wait take the core of whatever else runs, and threads that sleep wake late. So many turns
# cost nothing on an idle machine (docs/performance.md). GNU's OpenMP counts them; another one has sleep alone.
WAITING = {"GOMP_SPINCOUNT": "30000"} if sys.platform == "linux" else {"OMP_WAIT_POLICY": "passive"}


def main() -> None:
    """Entry point: `diffclip.cli.main`, with an end by Ctrl-C that is quiet while its modules are still read."""
    set_environment()
    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # and not ignored, as by nohup
    if usual:
        signal.signal(signal.SIGINT, _end)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # None where it is closed
            stream.reconfigure(errors="replace")  # a terminal without λ shows something else in its place
    try:
        os.getcwd()
    except OSError:
        sys.exit("diffclip: the folder in which it is started does not exist any more: cd to one that does")
    from diffclip.cli import main as command

    if usual:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        try:
            command()
        finally:
            if sys.stdout:
                sys.stdout.flush()
    except OSError as error:
        if error.errno == errno.ENOENT and error.filename is None and not _has_temporary_folder():
            sys.exit("diffclip: no folder for temporary files can be written, /tmp neither: set TMPDIR to one that can")
        if error.filename is not None or error.errno not in (errno.EPIPE, errno.ENOSPC, errno.EIO):
            raise
        _silence()
        if error.errno == errno.EPIPE:  # as `head` does when it has enough
            sys.exit(128 + 13)
        sys.exit(f"diffclip: what it prints cannot be written: {error.strerror}")


def set_environment() -> None:
    """`SETTINGS`, where the user has none, and `WAITING`, where the user has said nothing of it."""
    said = os.environ.keys() & {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}
    for name, value in (SETTINGS if said else SETTINGS | WAITING).items():
        os.environ.setdefault(name, value)


def _has_temporary_folder() -> bool:
    try:
        return bool(tempfile.gettempdir())
    except FileNotFoundError:
        return False


def _silence() -> None:
    """What is still to be printed is dropped, or Python would fail on it once more at its end."""
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)


def _end(*_: Any) -> None:
    os._exit(130)  # an exception here could be taken for that of a module which cannot be imported


def _member(rank: int) -> None:
    """The command in one of torchrun's processes: the first speaks for all, others of what is theirs alone."""
    set_environment()
    import logging

    from torch.distributed.elastic.multiprocessing.errors import record

    from diffclip.terminal import log_to_stderr

    if int(os.environ["WORLD_SIZE"]) > 1 and sys.argv[1:2] and sys.argv[1] not in SHARED:
        sys.exit(f"diffclip: {sys.argv[1]} runs in one process: start it without torchrun")
    if rank:
        log_to_stderr(logging.ERROR)
    try:
        record(main)()  # a traceback also goes to torchrun, whose summary shows that of the first to fail
    except SystemExit as end:
        if rank and end.code:
            time.sleep(PATIENCE)
            sys.exit(f"{end.code} (in process {rank})" if isinstance(end.code, str) else end.code)
        raise
    except Exception:
        if rank:
            time.sleep(PATIENCE)
        raise


if __name__ == "__main__":
    if "TORCHELASTIC_RUN_ID" in os.environ:
        _member(int(os.environ["RANK"]))
    else:
        main()
