"""The routes of the page: each takes little, answers in JSON or JPEG, and says in a line what is wrong."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import datetime, timedelta
from importlib.resources import files
from typing import Any

from jinja2 import Environment
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from diffclip.data.images import BadImage
from diffclip.errors import UserError
from diffclip.reading import parse_json
from diffclip.search.query import Filters
from diffclip.search.rows import shown
from diffclip.server.room import Room, short
from diffclip.server.shelf import NotThere
from diffclip.text import printable

UPLOAD_BYTES = 1 << 25
"""Of an uploaded picture, 32 MB."""
UPLOADS_AT_ONCE = 4
QUESTION_BYTES = 1 << 16
PAGE, MOST_PARTS, FURTHEST, MOST_DESKS = 60, 16, 20_000, 99
"""Pictures of an answer at most; parts of a query; how far one may scroll; the number of an index."""
KEEP = {"cache-control": "private, max-age=3600"}


def create_app(room: Room) -> Starlette:
    """The application, which the guard stands in front of."""
    here = files("diffclip.server")
    page = Environment(autoescape=True).from_string(here.joinpath("page.html.j2").read_text(encoding="utf-8"))
    drawn = page.render(models=[desk.name for desk in room.desks], folders=[shown(f) for f in room.folders()])
    uploads = asyncio.Semaphore(UPLOADS_AT_ONCE)

    async def home(_: Request) -> Response:
        return HTMLResponse(drawn)

    def static(name: str, kind: str) -> Callable[[Request], Any]:
        content = here.joinpath(name).read_bytes()

        async def send(_: Request) -> Response:
            return Response(content, media_type=kind)

        return send

    async def thumbnail(request: Request) -> Response:
        return await _picture(request, "thumbnail")

    async def picture(request: Request) -> Response:
        return await _picture(request, "large")

    async def _picture(request: Request, size: str) -> Response:
        desk = room.desk(request.path_params["desk"])
        made = await run_in_threadpool(getattr(desk.shelf, size), request.path_params["id"])
        return Response(made, media_type="image/jpeg", headers=KEEP)

    async def upload(request: Request) -> Response:
        async with uploads:
            content = await _body(request, UPLOAD_BYTES)
            return JSONResponse({"upload": await run_in_threadpool(room.upload, content)})

    async def search(request: Request) -> Response:
        asked = await _question(request)
        parts = [_part(part) for part in _list(asked, "parts", MOST_PARTS)]
        count, offset = _number(asked, "count", 1, PAGE), _number(asked, "offset", 0, FURTHEST)
        number, filters = _number(asked, "desk", 0, MOST_DESKS), _filters(asked.get("filters") or {})
        hits = await run_in_threadpool(room.search, number, parts, count + 1, offset, filters)  # one says there is more
        folders = room.desk(number).index.about.folders
        found = [
            {
                "id": hit.id,
                "name": printable(shown(short(hit.path, folders))),
                "score": round(hit.score, 4),
                "taken": hit.taken.isoformat(" ") if hit.taken else None,
                "camera": hit.camera,
                "width": hit.width,
                "height": hit.height,
            }
            for hit in hits[:count]
        ]
        return JSONResponse({"hits": found, "more": len(hits) > count and offset + count < FURTHEST})

    async def look(request: Request) -> Response:
        asked = await _question(request)
        number = _number(asked, "desk", 0, MOST_DESKS)
        found = await run_in_threadpool(room.look, number, _text(asked, "id"), _text(asked, "text"))
        return JSONResponse([{"model": name, **asdict(seen)} for name, seen in found])

    async def labels(request: Request) -> Response:
        asked = await _question(request)
        chosen = [str(label) for label in _list(asked, "labels", 1 << 10)]
        number = _number(asked, "desk", 0, MOST_DESKS)
        found = await run_in_threadpool(room.labels, number, _text(asked, "id"), chosen)
        return JSONResponse([{"model": name, "labels": of_model} for name, of_model in found])

    return Starlette(
        routes=[
            Route("/", home),
            Route("/page.css", static("page.css", "text/css")),
            Route("/page.js", static("page.js", "text/javascript")),
            Route("/thumbnail/{desk:int}/{id:str}", thumbnail),
            Route("/picture/{desk:int}/{id:str}", picture),
            Route("/upload", upload, methods=["POST"]),
            Route("/search", search, methods=["POST"]),
            Route("/look", look, methods=["POST"]),
            Route("/labels", labels, methods=["POST"]),
        ],
        exception_handlers={
            UserError: lambda _, error: JSONResponse({"error": str(error)}, 400),
            BadImage: lambda _, error: _bad_image(error),
            NotThere: lambda _, error: JSONResponse({"error": "that picture is gone; index anew"}, 404),
            HTTPException: lambda _, error: JSONResponse({"error": error.detail}, error.status_code),
        },
    )


def _bad_image(error: Exception) -> Response:
    return JSONResponse({"error": f"that picture cannot be used: {str(error).replace('_', ' ')}"}, 400)


async def _body(request: Request, most: int) -> bytes:
    """What was sent, of at most so many bytes: read no further than that."""
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > most:
            raise HTTPException(413, f"more than {most >> 20 or 1} MB: send less")
    return bytes(content)


async def _question(request: Request) -> Mapping[str, Any]:
    try:
        asked = parse_json(await _body(request, QUESTION_BYTES))
    except (ValueError, json.JSONDecodeError):
        raise UserError("that is no JSON") from None
    if not isinstance(asked, dict):
        raise UserError("that is no JSON object")
    return asked


def _part(part: object) -> tuple[str, str, float]:
    if isinstance(part, dict) and part.get("kind") in ("text", "picture", "upload"):
        what, weight = part.get("what"), part.get("weight", 1.0)
        if isinstance(what, str) and isinstance(weight, (int, float)) and abs(weight) <= 100:
            return part["kind"], what, float(weight)
    raise UserError("a part of a query has kind, what and weight")


def _list(asked: Mapping[str, Any], name: str, most: int) -> list[Any]:
    given = asked.get(name)
    if not isinstance(given, list) or len(given) > most:
        raise UserError(f"{name} must be a list of at most {most}")
    return given


def _number(asked: Mapping[str, Any], name: str, least: int, most: int) -> int:
    given = asked.get(name)
    if not isinstance(given, int) or not least <= given <= most:
        raise UserError(f"{name} must be a number from {least} to {most}")
    return given


def _text(asked: Mapping[str, Any], name: str) -> str:
    given = asked.get(name)
    if not isinstance(given, str):
        raise UserError(f"{name} must be a text")
    return given


def _filters(given: object) -> Filters:
    if not isinstance(given, dict):
        raise UserError("filters must be an object")
    stated = {name: value for name, value in given.items() if value not in (None, "")}
    try:
        since, until = (datetime.fromisoformat(d) if (d := stated.pop(k, None)) else None for k in ("since", "until"))
        folder, camera = stated.pop("folder", None), stated.pop("camera", None)
        width = stated.pop("min_width", None)
        if stated or not all(isinstance(v, (str, type(None))) for v in (folder, camera)):
            raise ValueError
        return Filters(
            folder, since, until and until + timedelta(days=1), camera, None if width is None else int(width)
        )
    except (ValueError, TypeError):
        raise UserError("filters are folder, since, until, camera, min_width") from None
