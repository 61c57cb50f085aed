"""The page's server: what it answers, and whom it answers nothing."""

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from starlette.testclient import TestClient

from diffclip import cli
from diffclip.search import update
from diffclip.search.rows import identity
from diffclip.search.store import Index
from diffclip.server import app as app_module
from diffclip.server import run as run_module
from diffclip.server.app import create_app
from diffclip.server.guard import LOOPBACK, POLICY, Guard
from diffclip.server.room import Room
from diffclip.server.shelf import prune
from diffclip.use.encoder import open_encoder
from use_pictures import encoded, make_album, model_folder, picture

HOST = "http://127.0.0.1:8765"


def indexed(folder, album, model):
    """An index of a DiffCLIP and one of a CLIP, of the same album, and their models."""
    uris = [str(folder / "diff"), str(folder / "clip")]
    sources = [model, model_folder(folder / "models" / "clip", "clip")]
    for uri, source in zip(uris, sources, strict=True):
        encoder = open_encoder(source)
        with update.open_index(uri, encoder, [str(album)], []) as index:
            update.update(index, encoder)
    return uris, sources


def room_of(uris, sources):
    return Room([Index.open(uri) for uri in uris], [open_encoder(source) for source in sources])


def client_of(room):
    return TestClient(Guard(create_app(room), LOOPBACK, False, None), base_url=HOST)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Thumbnails of each test by themselves."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def shared(model, tmp_path_factory):
    """An album that no test changes, and its indexes."""
    folder = tmp_path_factory.mktemp("shared")
    album = make_album(folder)
    return album, room_of(*indexed(folder, album, model))


@pytest.fixture
def client(shared):
    return client_of(shared[1])


@pytest.fixture
def two(model, album, tmp_path):
    """Indexes of an album that the test may change."""
    return indexed(tmp_path, album, model)


def search(client, parts=({"kind": "text", "what": "a star", "weight": 1},), **more):
    return client.post("/search", json={"desk": 0, "parts": list(parts), "count": 10, "offset": 0} | more)


def test_the_page_is_whole_and_offline(client):
    page = client.get("/").text
    assert not re.search(r"https?://", page + client.get("/page.js").text + client.get("/page.css").text)
    assert not re.search(r" on\w+=|<style|style=|<script>", page)
    assert page.count("<option value=") == 2 + 1


def test_queries_uploads_thumbnails_and_pages(client, shared):
    album = shared[0]
    hits = search(client).json()["hits"]
    assert len(hits) == 6
    assert [hit["score"] for hit in hits] == sorted((hit["score"] for hit in hits), reverse=True)
    assert {hit["name"] for hit in hits} >= {"it's an album/sea/a.png", "it's an album/hills/high/é ü.webp"}
    paged = [hit for offset in (0, 4) for hit in search(client, count=4, offset=offset).json()["hits"]]
    assert paged == hits
    assert [search(client, count=count).json()["more"] for count in (5, 6, 7)] == [True, False, False]
    image = (album / "sea/b.png").read_bytes()
    name = client.post("/upload", content=image, headers={"content-type": "application/octet-stream"}).json()["upload"]
    found = search(client, [{"kind": "upload", "what": name}]).json()["hits"]
    assert found[0]["name"].endswith("b.png")
    assert found[0]["score"] > 0.999
    like = search(client, [{"kind": "picture", "what": found[0]["id"]}, {"kind": "text", "what": "a", "weight": -0.1}])
    assert like.json()["hits"][0]["name"].endswith("b.png")
    filtered = search(client, filters={"camera": "canon", "until": "2024-02-29", "folder": str(album)}).json()["hits"]
    assert [hit["name"] for hit in filtered] == ["it's an album/hills/d.jpg"]
    phone = next(hit for hit in hits if hit["name"].endswith("c.jpg"))
    for path in ("thumbnail", "picture"):
        answer = client.get(f"/{path}/0/{phone['id']}")
        assert answer.headers["content-type"] == "image/jpeg"
        assert Image.open(io.BytesIO(answer.content)).size == (30, 40)


def test_where_both_models_look_and_their_layers(client):
    hit = search(client).json()["hits"][0]
    diff, clip = client.post("/look", json={"desk": 0, "id": hit["id"], "text": "a red star"}).json()
    assert (diff["model"], clip["model"]) == ("diffclip", "clip")
    assert set(diff["layers"][0]["maps"]) == {"A1", "A2", "A1 − λA2"}
    assert set(clip["layers"][0]["maps"]) == {"A"}
    assert diff["layers"][0]["lam"] is not None
    assert all(url.startswith("data:image/") for url in (diff["overlay"], *diff["layers"][0]["maps"].values()))
    labels = client.post("/labels", json={"desk": 0, "id": hit["id"], "labels": ["a", "b", "c"]}).json()
    assert [model["model"] for model in labels] == ["diffclip", "clip"]
    assert all(abs(sum(p for _, p in model["labels"]) - 1) < 1e-5 for model in labels)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "127.0.0.1:8765"}, 200),
        ({"host": "localhost:1"}, 200),
        ({"host": "[::1]:8765"}, 200),
        ({"host": "evil.example:8765"}, 403),
        ({"host": "127.0.0.1.evil.example"}, 403),
        ({"host": "192.168.1.2"}, 403),
        ({"host": "["}, 403),
        ({"origin": HOST}, 200),
        ({"origin": HOST.replace("http:", "https:")}, 200),  # a proxy with TLS before it
        ({"origin": "http://127.0.0.1:9999"}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"content-type": "text/plain"}, 415),
        ({"content-type": "application/x-www-form-urlencoded"}, 415),
    ],
)
def test_other_sites_are_kept_out(client, headers, status):
    body = json.dumps({"desk": 0, "parts": [{"kind": "text", "what": "a"}], "count": 1, "offset": 0})
    answer = client.post("/search", content=body, headers={"content-type": "application/json"} | headers)
    assert answer.status_code == status
    assert answer.headers["content-security-policy"] == POLICY
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    assert "access-control-allow-origin" not in answer.headers


def test_pictures_are_not_for_other_sites_but_the_page_may_be_linked_to(client):
    id = search(client).json()["hits"][0]["id"]
    embedded = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors", "sec-fetch-dest": "image"}
    assert client.get(f"/thumbnail/0/{id}", headers=embedded).status_code == 403
    opened = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    assert client.get("/", headers=opened).status_code == 200
    assert client.get("/", headers=opened | {"sec-fetch-dest": "iframe"}).status_code == 403


def test_a_token_opens_what_others_reach(shared):
    guarded = TestClient(Guard(create_app(shared[1]), (), True, "secret"), base_url="http://192.168.1.2:80")
    assert guarded.get("/").status_code == 401
    assert guarded.get("/?token=wrong").status_code == 401
    assert guarded.get("/page.js?token=secret").status_code == 401
    assert guarded.get("/page.js", headers={"authorization": "Bearer secret"}).status_code == 200
    answer = guarded.get("/?token=secret", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    assert re.search("httponly.*samesite=strict", answer.headers["set-cookie"].lower())
    assert guarded.get("/").status_code == 200
    assert guarded.get("/", headers={"host": "evil.example"}).status_code == 403


def test_no_path_leads_out_of_the_folders(two, album, tmp_path):
    client = client_of(room_of(*two))
    secret = tmp_path / "secret.png"
    secret.write_bytes(encoded(picture(50)))
    id = identity(str(album / "sea/a.png"))
    assert client.get(f"/picture/0/{id}").status_code == 200
    (album / "sea/a.png").unlink()
    (album / "sea/a.png").symlink_to(secret)
    assert client.get(f"/picture/0/{id}").status_code == 404
    (album / "sea/a.png").unlink()
    assert client.get(f"/picture/0/{id}").status_code == 404
    (album / "sea").rename(tmp_path / "elsewhere")
    (album / "sea").symlink_to(tmp_path / "elsewhere")
    assert client.get(f"/picture/0/{identity(str(album / 'sea/b.png'))}").status_code == 404
    for wrong in ("..%2f..%2fetc%2fpasswd", "x' OR '1'='1", str(secret), identity(str(secret))):
        assert client.get(f"/picture/0/{wrong}").status_code == 404
    assert client.get(f"/picture/7/{id}").status_code == 400


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("/search", {"desk": 0, "parts": [], "count": 1, "offset": 0}, "nothing to look for"),
        ("/search", {"desk": 0, "parts": 1, "count": 1, "offset": 0}, "parts must be a list"),
        ("/search", {"desk": 0, "parts": [{"kind": "text", "what": " "}], "count": 1, "offset": 0}, "an empty text"),
        ("/search", {"desk": 0, "parts": [{"kind": "text", "what": "a" * 3000}], "count": 1, "offset": 0}, "3,000"),
        ("/search", {"desk": 0, "parts": [{"kind": "file", "what": "/"}], "count": 1, "offset": 0}, "has kind, what"),
        ("/search", {"desk": 0, "parts": [{"kind": "upload", "what": "x"}], "count": 1, "offset": 0}, "drop it again"),
        ("/search", {"desk": 0, "parts": [{"kind": "picture", "what": "x"}], "count": 1, "offset": 0}, "no longer"),
        ("/search", {"desk": 0, "parts": [{"kind": "text", "what": "a"}], "count": 999, "offset": 0}, "from 1 to 60"),
        ("/search", {"desk": 9, "parts": [{"kind": "text", "what": "a"}], "count": 1, "offset": 0}, "no such index"),
        ("/look", {"desk": 0, "id": 3, "text": "a"}, "id must be a text"),
        ("/labels", {"desk": 0, "id": "x", "labels": ["a", "a"]}, "given twice"),
        ("/labels", {"desk": 0, "id": "x", "labels": list(map(str, range(300)))}, "at most 200"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said_in_a_line(client, path, body, said):
    answer = client.post(path, json=body)
    assert answer.status_code == 400
    assert said in answer.json()["error"]


def test_limits_of_what_is_sent(client, monkeypatch):
    kind = {"content-type": "application/octet-stream"}
    monkeypatch.setattr(app_module, "UPLOAD_BYTES", 1000)
    assert client.post("/upload", content=b"x" * 1001, headers=kind).status_code == 413
    assert "not an image" in client.post("/upload", content=b"x" * 99, headers=kind).json()["error"]
    monkeypatch.undo()
    monkeypatch.setattr("diffclip.server.room.UPLOAD_PIXELS", 100)
    assert "too many pixels" in client.post("/upload", content=encoded(picture()), headers=kind).json()["error"]
    assert (
        client.post("/search", content=b"[" * 70_000, headers={"content-type": "application/json"}).status_code == 413
    )
    assert client.post("/search", content=b"[" * 7000, headers={"content-type": "application/json"}).status_code == 400
    assert client.get("/search").status_code == 405


def test_thumbnails_are_kept_up_to_a_limit(client, tmp_path):
    folder = tmp_path / "cache/diffclip/thumbnails"
    ids = [hit["id"] for hit in search(client).json()["hits"]]
    first = [client.get(f"/thumbnail/0/{id}").content for id in ids]
    assert len(list(folder.rglob("*.jpg"))) == 6
    assert [client.get(f"/thumbnail/1/{id}").content for id in ids] == first
    prune(len(first[0]))
    assert sum(path.stat().st_size for path in folder.rglob("*.jpg")) <= len(first[0])


@pytest.fixture
def started(two):
    """Two servers on one index, each a process of its own."""
    processes = []
    for _ in range(2):
        command = [sys.executable, "-m", "diffclip", "serve", *two[0], "--port", "0"]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    urls = [process.stdout.readline().split()[0] for process in processes]
    yield processes, urls, two
    for process in processes:
        process.kill()
        process.communicate()


def test_two_servers_fifty_clients_and_a_writer(started, album):
    processes, urls, (uris, sources) = started

    def ask(number):
        body = {"desk": 0, "parts": [{"kind": "text", "what": f"star {number % 7}"}], "count": 10, "offset": 0}
        request = Request(f"{urls[number % 2]}search", json.dumps(body).encode(), {"content-type": "application/json"})
        return len(json.load(urlopen(request, timeout=300))["hits"])

    with ThreadPoolExecutor(50) as pool:
        asked = [pool.submit(ask, number) for number in range(100)]
        encoder = open_encoder(sources[0])
        for number in range(3):
            (album / f"new{number}.png").write_bytes(encoded(picture(60 + number)))
            with update.open_index(uris[0], encoder, [], []) as index:
                update.update(index, encoder)
        counts = [future.result() for future in asked]
    assert set(counts) <= {6, 7, 8, 9}
    assert ask(0) == ask(1) == 9  # both see what was written
    with pytest.raises(HTTPError, match="403"):
        urlopen(Request(urls[0], headers={"Host": "evil.example"}), timeout=300)
    for process, number in zip(processes, (signal.SIGINT, signal.SIGTERM), strict=True):
        process.send_signal(number)
        _, err = process.communicate(timeout=120)
        assert "Traceback" not in err
        assert process.returncode in (0, -signal.SIGTERM)


def test_a_port_in_use_and_other_wrong_arguments(two, tmp_path):
    def ended(*arguments):
        with pytest.raises(SystemExit) as end:
            cli.main(["serve", *map(str, arguments)])
        return str(end.value.code)

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"port {port} is in use" in ended(two[0][0], "--port", port)
    assert "no index" in ended()
    assert "there is no index" in ended(tmp_path / "none")
    assert "given twice" in ended(two[0][0], two[0][0])
    assert "2 models for 1" in ended(two[0][0], "--model", "a", "b")
    assert "up to 65535" in ended(two[0][0], "--port", 99999)
    os.rename(two[1][1], tmp_path / "gone")
    assert "cannot be opened" in ended(two[0][1], "--port", 0)


def test_another_address_has_a_token(two, monkeypatch):
    said = []

    class Server:
        def __init__(self, config):
            self.app = config.app

        def run(self, sockets):
            said.append(self.app)

    monkeypatch.setattr(run_module.uvicorn, "Server", Server)
    for address, names in (("127.0.0.1", []), ("0.0.0.0", ["my.name"])):
        run_module.serve(two[0][:1], [], address, 0, names, said.append)
    (near, guard, far, far_guard) = said
    assert "token" not in near
    assert guard._token is None
    assert far.endswith(f"?token={far_guard._token}")
    assert len(far_guard._token) >= 32
    assert np.all([far_guard._is_ours("my.name:1"), far_guard._is_ours("10.0.0.1"), not guard._is_ours("10.0.0.1")])


@pytest.mark.parametrize(
    ("address", "hosts", "said", "asked"),
    [
        ("127.0.0.1", [], None, False),
        ("127.0.0.1", ["photos.example"], None, True),  # a proxy stands before it
        ("0.0.0.0", [], None, True),
        ("127.0.0.1", [], "mine", True),
        ("0.0.0.0", [], "mine", True),
    ],
)
def test_a_token_is_asked_wherever_others_may_come(monkeypatch, address, hosts, said, asked):
    monkeypatch.delenv("DIFFCLIP_TOKEN", raising=False)
    if said:
        monkeypatch.setenv("DIFFCLIP_TOKEN", said)
    token = run_module.token_of(address, hosts)
    assert (token is not None) == asked
    if asked:
        assert token == said if said else len(token) > 20
