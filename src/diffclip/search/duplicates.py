"""Pictures that are nearly the same: every pair of an index is compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from diffclip.errors import UserError
from diffclip.search.rows import matrix, path_of
from diffclip.search.store import Index

BLOCK = 2048
"""Rows and columns of cosines at a time: 16 MB."""


@dataclass(frozen=True)
class Group:
    """Pictures of which each is nearly the same as another of the group."""

    paths: tuple[str, ...]
    least: float
    """The lowest cosine, from the threshold on, of a pair of the group."""
    identical: bool
    """Whether all files have the same bytes."""


def duplicates(
    index: Index, threshold: float, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> list[Group]:
    """Groups of pictures with cosines from `threshold` on, the largest groups first.

    Exact, and so quadratic in the number of pictures: on_progress is given the blocks that are done, of how many.
    Raises UserError for a threshold that is no cosine above 0.
    """
    if not 0 < threshold <= 1:
        raise UserError(f"--threshold {threshold:g}: give a cosine above 0, at most 1")
    table = index.pictures.search().select(["path", "raw", "content", "vector"]).limit(None).to_arrow()
    paths = [path_of(row) for row in table.select(["path", "raw"]).to_pylist()]
    contents, vectors = table["content"].to_pylist(), matrix(table["vector"]).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    first: dict[str, int] = {}
    copy_of = np.array([first.setdefault(content, row) for row, content in enumerate(contents)], np.int64)
    rows = np.unique(copy_of)  # one of each content
    pairs, cosines = _near(vectors[rows], threshold, on_progress)
    linked = [np.stack([np.arange(len(paths)), copy_of], 1), rows[pairs]]
    links = np.concatenate(linked)
    graph = coo_matrix((np.ones(len(links)), (links[:, 0], links[:, 1])), shape=(len(paths), len(paths)))
    _, group_of = connected_components(graph, directed=False)
    least = np.ones(len(paths))
    np.minimum.at(least, group_of[linked[1][:, 0]], cosines)
    members: dict[int, list[int]] = {}
    for row, group in enumerate(group_of.tolist()):
        members.setdefault(group, []).append(row)
    groups = [
        Group(tuple(sorted(paths[row] for row in of)), float(least[group]), len({contents[row] for row in of}) == 1)
        for group, of in members.items()
        if len(of) > 1
    ]
    return sorted(groups, key=lambda group: (-len(group.paths), group.paths))


def _near(
    vectors: NDArray[np.float32], threshold: float, on_progress: Callable[[int, int], None]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Pairs of rows (P, 2) whose cosines are from the threshold on, and these cosines (P,)."""
    pairs, cosines = [np.empty((0, 2), np.int64)], [np.empty(0, np.float32)]
    blocks = range(0, len(vectors), BLOCK)
    done, total = 0, len(blocks) * (len(blocks) + 1) // 2
    for start in blocks:
        for other in range(start, len(vectors), BLOCK):
            block = np.minimum(vectors[start : start + BLOCK] @ vectors[other : other + BLOCK].T, 1)
            near = np.argwhere(block >= threshold)
            near = near[near[:, 0] + start < near[:, 1] + other]  # each pair once, and none with itself
            pairs.append(near + np.array([start, other]))
            cosines.append(block[near[:, 0], near[:, 1]])
            done += 1
            on_progress(done, total)
    return np.concatenate(pairs), np.concatenate(cosines)
