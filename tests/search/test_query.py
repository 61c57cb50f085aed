"""`diffclip search`: what is found is what exact arithmetic finds."""

import json
import os
import re
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

import diffclip
from diffclip import cli
from diffclip.search import duplicates, query, store, update
from diffclip.search.exif import Facts
from diffclip.search.files import File
from diffclip.search.query import Filters, Part
from diffclip.search.rows import Row, matrix
from diffclip.search.store import Index
from diffclip.use.encoder import open_encoder
from use_pictures import encoded, model_folder, picture


@pytest.fixture(scope="module")
def encoder(model):
    return open_encoder(model)


@pytest.fixture
def index(encoder, album, tmp_path):
    uri = str(tmp_path / "index")
    with update.open_index(uri, encoder, [str(album)], []) as opened:
        update.update(opened, encoder)
    return uri


def names(hits):
    return [os.path.basename(hit.path) for hit in hits]


def ended(*arguments):
    with pytest.raises(SystemExit) as end:
        cli.main(list(map(str, arguments)))
    return str(end.value.code)


def test_scores_are_cosines_of_the_weighted_sum(index, album, encoder, capsys):
    cli.main(
        ["search", index, "beach", "--image", str(album / "sea/a.png"), "--minus", "people", "--weights", "1", "2",
         "0.5", "--format", "json"]
    )  # fmt: skip
    found = json.loads(capsys.readouterr().out)
    net, _, tokenizer = diffclip.load(encoder.source)
    beach, people = net.encode_text(tokenizer(["beach", "people"]), normalize=True).detach().double().numpy()
    paths = [row["path"] for row in found]
    images = encoder.images([encoder.pixels(Path(path).read_bytes()) for path in paths]).astype(np.float64)
    wanted = beach + 2 * images[[os.path.basename(path) for path in paths].index("a.png")] - 0.5 * people
    expected = [sum(a * b for a, b in zip(row, wanted, strict=True)) / np.sqrt(wanted @ wanted) for row in images]
    np.testing.assert_allclose([row["score"] for row in found], expected, atol=2e-3)
    assert expected == sorted(expected, reverse=True)
    assert len(found) == 6


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (Filters(since=datetime(2023, 7, 1)), {"c.jpg", "d.jpg"}),
        (Filters(until=datetime(2024, 2, 29)), {"c.jpg"}),
        (Filters(camera="eos"), {"d.jpg"}),
        (Filters(camera="100% o'clock_"), set()),
        (Filters(min_width=60), {"b.png"}),
        (Filters(min_width=30, min_height=40), {"b.png", "c.jpg"}),
        (Filters(folder="sea"), {"a.png", "b.png", "c.jpg"}),
        (Filters(folder="hills/high"), {"e.png", "é ü.webp"}),
        (Filters(folder="hill"), set()),
    ],
)
def test_filters(index, album, encoder, filters, expected, monkeypatch):
    monkeypatch.chdir(album)
    hits = query.find(Index.open(index), query.vector_of(encoder, [Part("a")]), 10, filters=filters)
    assert set(names(hits)) == expected


def test_pages_follow_each_other(index, encoder):
    opened, vector = Index.open(index), query.vector_of(encoder, [Part("a")])
    whole = names(query.find(opened, vector, 6))
    assert names(query.find(opened, vector, 4)) + names(query.find(opened, vector, 4, offset=4)) == whole


def test_days_on_the_command_line(index, capsys):
    for given, expected in (
        (["--since", "2024", "--until", "2024"], ["d.jpg"]),
        (["--until", "2023-07"], ["c.jpg"]),
        (["--since", "2024-02-29", "--until", "2024-02-29"], ["d.jpg"]),
    ):
        cli.main(["search", index, "a", *given, "--format", "paths"])
        assert [os.path.basename(line) for line in capsys.readouterr().out.splitlines()] == expected


def test_near_duplicates_are_grouped(index, album, encoder, tmp_path, capsys):
    (album / "copy.png").write_bytes((album / "sea/a.png").read_bytes())
    (album / "near.jpg").write_bytes(encoded(picture(2, (64, 48)), "JPEG", quality=97))
    with update.open_index(index, encoder, [], []) as opened:
        update.update(opened, encoder)
    cli.main(["search", index, "--duplicates", "--format", "json", "--threshold", "0.999"])
    groups = json.loads(capsys.readouterr().out)
    assert [[os.path.basename(path) for path in group["paths"]] for group in groups] == [
        ["copy.png", "a.png"],
        ["near.jpg", "b.png"],
    ]
    assert [group["identical"] for group in groups] == [True, False]
    assert 0.999 <= groups[1]["least_cosine"] <= 1


def test_groups_are_the_components_of_the_graph_of_near_pairs(index, monkeypatch):
    monkeypatch.setattr(duplicates, "BLOCK", 2)
    opened = Index.open(index)
    table = opened.pictures.search().select(["path", "vector"]).limit(None).to_arrow()
    vectors = matrix(table["vector"]).astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = vectors @ vectors.T
    threshold = float(np.sort(cosines[np.triu_indices(6, 1)])[-3])  # three pairs
    reach = cosines >= threshold
    for _ in range(6):
        reach = (reach.astype(int) @ reach.astype(int)) > 0
    paths = table["path"].to_pylist()
    expected = {frozenset(np.array(paths)[row].tolist()) for row in reach if row.sum() > 1}
    assert {frozenset(group.paths) for group in duplicates.duplicates(opened, threshold - 1e-6)} == expected


def large_index(uri, vectors):
    index = Index.create(str(uri), store.About("m", "f", "float32", vectors.shape[1], ("/p",)))
    index.add(rows_of(vectors, 0))
    return index


def rows_of(vectors, start):
    files = [File(f"/p/{start + row}.jpg", 1, 1) for row in range(len(vectors))]
    return [Row(file, file.path, Facts(), vector) for file, vector in zip(files, vectors, strict=True)]


def unit_vectors(count, seed=0):
    vectors = np.random.default_rng(seed).normal(size=(count, 16)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def compared(index, vector):
    """How many vectors of the vector index a query compares, and in how many partitions."""
    plan = index.pictures.search(vector).distance_type("cosine").nprobes(query.PROBES).limit(10).analyze_plan()
    comparisons = max(map(float, re.findall(r"index_comparisons=([\d.]+)", plan.replace(" K", "e3"))))
    return comparisons, max(map(int, re.findall(r"partitions_searched=(\d+)", plan)))


def numbers(hits):
    return [int(os.path.basename(hit.path)[:-4]) for hit in hits]


def test_a_large_index_finds_nearly_what_comparing_all_finds(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "EXACT", 2000)
    monkeypatch.setattr(store, "PARTITION", 50)
    monkeypatch.setattr(query, "PROBES", 20)
    vectors = unit_vectors(2500)
    index = large_index(tmp_path / "i", vectors)
    index.tidy()
    assert {column for one in index.pictures.list_indices() for column in one.columns} == {"id", "vector"}
    for _ in range(2):  # also once its files are joined and it was brought up to date
        comparisons, partitions = compared(index, vectors[0])
        assert partitions == query.PROBES
        assert comparisons < 0.8 * len(vectors)
        index.tidy()
    fresh = unit_vectors(1, seed=9)
    index.add(rows_of(fresh, 9000))
    assert numbers(query.find(index, fresh[0], 1)) == [9000]  # what the vector index has not yet seen
    right = 0
    for wanted in vectors[:20]:
        exact = set(np.argsort(-(vectors @ wanted))[:10].tolist())
        right += len(exact & set(numbers(query.find(index, wanted, 10))))
    assert right >= 0.9 * 200


def test_a_condition_is_met_by_as_many_as_there_are_however_far_they_lie(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "EXACT", 2000)
    monkeypatch.setattr(store, "PARTITION", 50)
    monkeypatch.setattr(query, "PROBES", 1)
    vectors = unit_vectors(2500)
    index = large_index(tmp_path / "i", vectors)
    index.tidy()
    far = np.argsort(vectors @ vectors[0])[:12]
    index.remove([f"/p/{row}.jpg" for row in far])
    index.add([Row(File(f"/far/{row}.jpg", 1, 1), str(row), Facts(), vectors[row]) for row in far])
    index.tidy()
    found = query.find(index, vectors[0], 10, filters=Filters(folder="/far"))
    assert set(numbers(found)) <= set(far.tolist())
    assert len(found) == 10


def test_a_vector_index_is_made_anew_once_it_is_outgrown_or_in_many_pieces_and_dropped_for_few(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "EXACT", 500)
    monkeypatch.setattr(store, "PARTITION", 100)
    monkeypatch.setattr(store, "PIECES", 3)
    made = []
    vectors = unit_vectors(2000)
    index = large_index(tmp_path / "i", vectors[:600])
    create = index.pictures.create_index
    monkeypatch.setattr(index.pictures, "create_index", lambda column, **o: (made.append(column), create(column, **o)))

    def pieces():
        index.tidy()
        stats = index.pictures.index_stats("vector_idx")
        assert stats.num_unindexed_rows == 0
        return stats.num_indices

    assert pieces() == 1
    assert made == ["vector", "id"]
    start = 600
    for expected in (2, 3, 1):  # the third finds three pieces, and joins them
        index.add(rows_of(vectors[start : start + 50], start))
        start += 50
        assert pieces() == expected
    assert made == ["vector", "id", "vector"]
    index.add(rows_of(vectors[750:], 750))  # more than there were
    assert pieces() == 1
    assert made == ["vector", "id", "vector", "vector"]
    index.remove([f"/p/{row}.jpg" for row in range(1600)])
    index.tidy()
    assert index.pictures.index_stats("vector_idx") is None  # every query looks at all again
    assert numbers(query.find(index, vectors[1700], 1)) == [1700]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to look for"),
        ([" "], "an empty text"),
        (["word " * 10_000], "50,000 characters: give at most"),
        (["a", "--minus", "a"], "cancel each other out"),
        (["a", "--weights", "1", "2"], "2 numbers for 1 part of"),
        (["a", "--weights", "-1"], "a number below 0"),
        (["a", "--weights", "nan"], "must be a number"),
        (["a", "--since", "yesterday"], "give a day, a month or a year"),
        (["a", "--top", "0"], "at least 1"),
        (["a", "--duplicates"], "leave the query out"),
        (["--duplicates", "--camera", "x"], "leave the conditions out"),
        (["--duplicates", "--threshold", "2"], "at most 1"),
        (["a", "--threshold", "0.9"], "--threshold is of --duplicates"),
        (["--duplicates", "--top", "3"], "--duplicates shows every group"),
        (["--image", "none.png"], "cannot be used as an image: missing"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(index, arguments, message):
    assert message in ended("search", index, *arguments)


def test_a_model_that_is_gone_or_another(encoder, album, tmp_path, capsys):
    model = model_folder(tmp_path / "model")
    assert "1 picture could not be read, everything else is done" in ended(
        "index", model, album, "--to", tmp_path / "i"
    )
    cli.main(["index", model, "--to", str(tmp_path / "i")])  # what is known and has not changed fails no more
    os.rename(model, tmp_path / "moved")
    assert "cannot be opened" in ended("search", tmp_path / "i", "a")
    cli.main(["search", str(tmp_path / "i"), "a", "--model", str(tmp_path / "moved")])
    assert "a.png" in capsys.readouterr().out
    other = model_folder(tmp_path / "other", seed=3)
    assert "features of two models do not compare" in ended("search", tmp_path / "i", "a", "--model", other)
    assert "there is no index" in ended("search", tmp_path / "none", "a")
    assert "is no index" in ended("search", album, "a")
    assert "an index lies in a folder, or at" in ended("search", "db://x", "a")


def test_a_missing_index_is_said_before_torch_is_loaded(tmp_path):
    words = ["search", str(tmp_path / "none"), "a"]
    program = f"import sys, diffclip.cli as c\ntry: c.main({words!r})\nfinally: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert "there is no index" in done.stderr
    assert done.stdout.splitlines()[-1] == "False"
