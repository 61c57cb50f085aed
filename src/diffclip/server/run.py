"""Start the server: bound before anything is loaded, and ended by Ctrl-C when all answers are sent."""

from __future__ import annotations

import errno
import os
import secrets
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import uvicorn

from diffclip.errors import UserError
from diffclip.search.session import encoder_for
from diffclip.search.store import Index
from diffclip.server.app import create_app
from diffclip.server.guard import LOOPBACK, Guard, is_loopback
from diffclip.server.room import Room
from diffclip.server.shelf import prune

AT_ONCE = 256
"""Requests that may be under way; more are told to come back."""
ANY = ("0.0.0.0", "::", "")


def bind(address: str, port: int) -> socket.socket:
    """A socket that listens. Raises UserError for a port in use, an address that is not this machine's."""
    if not 0 <= port <= 65535:
        raise UserError(f"--port {port}: give a number up to 65535; 0 takes a free one")
    try:
        family, _, _, _, place = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        bound = socket.socket(family, socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(place)
        bound.listen(128)
    except socket.gaierror:
        raise UserError(f"--address {address}: there is no such address") from None
    except OSError as error:
        told = {
            errno.EADDRINUSE: f"port {port} is in use: give another --port, or 0 for a free one",
            errno.EACCES: f"port {port} may not be taken by this user: give one from 1024 on",
            errno.EADDRNOTAVAIL: f"--address {address} is not an address of this machine",
        }
        raise UserError(told.get(error.errno or 0, f"cannot listen on {address}:{port}: {error.strerror}")) from None
    return bound


def token_of(address: str, allow_host: Sequence[str]) -> str | None:
    """What is asked of every browser: $DIFFCLIP_TOKEN, else a fresh one where others can reach the server.

    A further name is that of a proxy, by which others reach a loopback address too.
    """
    reached = not is_loopback(address) or bool(allow_host)
    return os.environ.get("DIFFCLIP_TOKEN") or (secrets.token_urlsafe(24) if reached else None)


def serve(
    uris: Sequence[str],
    models: Sequence[str],
    address: str,
    port: int,
    allow_host: Sequence[str],
    say: Callable[[str], None],
) -> None:
    """Serve indexes until Ctrl-C or SIGTERM. Raises UserError."""
    indexes = [Index.open(uri) for uri in uris]
    with bind(address, port) as bound:
        port = bound.getsockname()[1]
        moved: Sequence[str | None] = models or [None] * len(indexes)
        encoders = [encoder_for(index, model) for index, model in zip(indexes, moved, strict=True)]
        token = token_of(address, allow_host)
        names = {*LOOPBACK, address.lower(), *map(str.lower, allow_host)}
        if not is_loopback(address):
            names.add(socket.gethostname().lower())
        app = Guard(create_app(Room(indexes, encoders)), names, address in ANY, token)
        prune()
        told = socket.gethostname() if address in ANY else f"[{address}]" if ":" in address else address
        say(f"http://{told}:{port}/{f'?token={token}' if token else ''}")
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            limit_concurrency=AT_ONCE,
            timeout_graceful_shutdown=10,
            server_header=False,
            lifespan="off",
            ws="none",
        )
        with suppress(KeyboardInterrupt):  # uvicorn has ended by then, and hands the signal on
            uvicorn.Server(config).run(sockets=[bound])


def count_of(uris: Sequence[str], models: Sequence[str]) -> None:
    """Raises UserError where there is no index, one twice, or another number of models."""
    if not uris:
        raise UserError("no index: give what `diffclip index` wrote")
    if len({str(Path(uri).resolve()) if "://" not in uri else uri for uri in uris}) < len(uris):
        raise UserError("the same index is given twice: give it once")
    if models and len(models) != len(uris):
        raise UserError(f"--model has {len(models)} models for {len(uris)} indexes: give one each, in their order")
