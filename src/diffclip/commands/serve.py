"""`diffclip serve`: a page that finds the pictures of an index and shows where the model looks."""

from __future__ import annotations

from tyro.conf import Positional

from diffclip.errors import UserError
from diffclip.text import say_loading


def serve(
    indexes: Positional[tuple[str, ...]],
    /,
    *,
    address: str = "127.0.0.1",
    port: int = 8765,
    allow_host: tuple[str, ...] = (),
    model: tuple[str, ...] = (),
) -> None:
    """Serve a page for an index until Ctrl-C; several are shown side by side.

    Args:
        indexes: What `diffclip index` wrote.
        address: Another address than this machine's own asks every browser for a token, which is printed; or
            $DIFFCLIP_TOKEN.
        port: 0 takes a free one.
        allow_host: Further names by which browsers may call this server, as through a proxy; a token is asked then.
        model: Where the models of the indexes lie now, if they have moved: one each.
    """
    say_loading()
    try:
        from diffclip.server.run import count_of, serve
    except ModuleNotFoundError as error:
        raise UserError(f"a page needs {error.name}: pip install 'diffclip[serve]'") from None

    count_of(indexes, model)
    serve(indexes, model, address, port, allow_host, lambda url: print(f"{url}   Ctrl-C ends it", flush=True))
