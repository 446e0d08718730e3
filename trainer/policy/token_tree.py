"""Trajectories as a tree of tokens, so that a model computes what they share once.

Rows are prompts, of one token at least, with their completions. In lexical order a row shares with its
predecessor all that it shares with any earlier row, so one pass over the sorted rows builds the tree. Nodes
are numbered depth first:

    prompt a b, completions  c d .   c e .   c d f      prompt a g, completion h .

    node     0   1   2   3   4   5
    token    a   b   c   d   e   g        a ── b ── c ── d      asked of c: d and e; of d: . and f
    depth    0   1   2   3   3   1        │         └── e      asked of e: .
    end      6   5   5   4   5   6        └── g                asked of g: h

Node k is an ancestor of node q, or q itself, iff k <= q < end[k]: that is the whole attention mask. A row's
last token is asked for, but nothing is asked of it: it is no node. What is asked of a node is the log-prob of
each distinct token that follows it.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainer.rollouts.batching import Trajectories

Attend = Callable[[Tensor, Tensor, Tensor, float | None], Tensor]
"""Attention among a tree's nodes: query [1, H, S, D], key and value [1, H', S, D], scale (None: D ** -0.5) ->
[1, H, S, D]"""

_ON_DEVICE = ("tokens", "depth", "end", "heads", "question_head", "question_token", "answers", "places")


@dataclass(frozen=True)
class TokenTree:
    """S nodes, Q questions (a node and a token that follows it), B rows of at most T completion tokens.

    Tensors are int64; the first eight are on one device, the others stay on the CPU.
    """

    tokens: Tensor  # [S] the model's input
    depth: Tensor  # [S] its position
    end: Tensor  # [S] one past the last node below it
    heads: Tensor  # [R] nodes of which something is asked, in rising order
    question_head: Tensor  # [Q] place in `heads`, in rising order
    question_token: Tensor  # [Q]
    answers: Tensor  # [B, T] number of the question about a row's t-th token; Q on padding
    places: Tensor  # [B] the same as `rows`
    rows: Tensor  # [B] the caller's numbers of the rows
    leaves: Tensor  # [B] the last node of each row
    questions_before: Tensor  # [R + 1] number of questions before each head, and of all
    chains: "tuple[Chain, ...]"

    @property
    def size(self) -> int:
        return len(self.tokens)

    def to(self, device: torch.device) -> "TokenTree":
        """On the device, by one copy that the host need not wait for."""
        if self.tokens.device == device:
            return self
        given = moved(device, [getattr(self, name) for name in _ON_DEVICE])
        there: dict[str, Any] = dict(zip(_ON_DEVICE, given, strict=True))
        return replace(self, **there)

    def numbered(self, numbers: Tensor) -> "TokenTree":
        """The tree, on the CPU, under other numbers: row r becomes `numbers[r]`."""
        return replace(self, rows=numbers[self.rows], places=numbers[self.rows])

    @property
    def width(self) -> int:
        """T."""
        return self.answers.shape[1]

    def mask_of_tokens(self) -> Tensor:
        """Bool [B, T]: completion tokens."""
        return self.answers < len(self.question_token)

    def mask(self) -> Tensor:
        """Bool [S, S]: whether the query (row) sees the key (column)."""
        place = torch.arange(self.size, device=self.end.device)
        return (place[None, :] <= place[:, None]) & (place[:, None] < self.end[None, :])

    def per_token(self, answers: Tensor) -> Tensor:
        """Numbers of the questions [Q] as [B, T], 0 on padding. Gradients of equal tokens add up."""
        return torch.cat([answers, answers.new_zeros(1)])[self.answers]


@dataclass(frozen=True)
class Chain:
    """Nodes that follow each other without a branch, and the path that leads to the first of them."""

    start: int
    length: int
    path: np.ndarray  # int64, root first


def sort_rows(given: Trajectories) -> list[int]:
    """Numbers of the rows that have a completion, in the order in which a tree takes them."""
    some = [row for row in range(len(given)) if len(given.completions[row])]
    return sorted(some, key=lambda row: (*given.prompts[row], *given.completions[row]))


def micro_batches(given: Trajectories, most_tokens: int) -> Iterator[TokenTree]:
    """Trees of all rows that have a completion, of at most `most_tokens` nodes each.

    A row that is longer has a tree of its own. What rows of two trees share is computed in both.
    """
    order, begin, size = sort_rows(given), 0, 0
    before = np.zeros(0, dtype=np.int64)
    for place, row in enumerate(order):
        line = _line(given, row)
        new = len(line) - 1 - _kept(before, line)
        if place > begin and size + new > most_tokens:
            yield token_tree(given, order[begin:place])
            begin, size, new = place, 0, len(line) - 1
        size += new
        before = line
    if order:
        yield token_tree(given, order[begin:])


def row_batches(given: Trajectories, most_tokens: int) -> Iterator[TokenTree]:
    """The same for a model that takes rows padded to the longest: their padded size is what counts."""
    order, begin, longest = sort_rows(given), 0, 0
    for place, row in enumerate(order):
        length = max(longest, len(given.prompts[row]) + len(given.completions[row]) - 1)
        if place > begin and (place + 1 - begin) * length > most_tokens:
            yield token_tree(given, order[begin:place])
            begin, length = place, len(given.prompts[row]) + len(given.completions[row]) - 1
        longest = length
    if order:
        yield token_tree(given, order[begin:])


def token_tree(given: Trajectories, order: Sequence[int]) -> TokenTree:
    """The tree of some rows, each with a completion, in the order of `sort_rows`."""
    building = _Building()
    longest = max(len(given.completions[row]) for row in order)
    answers = np.full((len(order), longest), -1, dtype=np.int64)
    for place, row in enumerate(order):
        asked = building.add(_line(given, row), len(given.prompts[row]))
        answers[place, : len(asked)] = asked
    return building.tree(answers, order)


def moved(device: torch.device, given: Sequence[Tensor]) -> list[Tensor]:
    """Tensors of one type on the device, by one copy that the host need not wait for."""
    flat = torch.cat([one.flatten() for one in given])
    flat = (flat.pin_memory() if device.type == "cuda" else flat).to(device, non_blocking=True)
    parts = torch.split(flat, [one.numel() for one in given])
    return [part.view(one.shape) for part, one in zip(parts, given, strict=True)]


def padded(tree: TokenTree, multiple: int) -> TokenTree:
    """The tree with a size that is a multiple: nodes at its end that see only themselves, asked nothing."""
    more = -tree.size % multiple
    if not more:
        return tree
    zeros = tree.tokens.new_zeros(more)
    alone = torch.arange(tree.size + 1, tree.size + more + 1, device=tree.end.device)
    return replace(
        tree,
        tokens=torch.cat([tree.tokens, zeros]),
        depth=torch.cat([tree.depth, zeros]),
        end=torch.cat([tree.end, alone]),
    )


def row_nodes(tree: TokenTree) -> Tensor:
    """The nodes of each row, root first, [B, L] int64 on the CPU; -1 on padding."""
    starts = [chain.start for chain in tree.chains]
    lines = []
    for leaf in tree.leaves.tolist():
        chain = tree.chains[bisect_right(starts, leaf) - 1]
        lines.append(np.concatenate([chain.path, np.arange(chain.start, leaf + 1)]))
    nodes = torch.full((len(lines), max(map(len, lines))), -1)
    for row, line in enumerate(lines):
        nodes[row, : len(line)] = torch.from_numpy(line)
    return nodes


class _Building:
    """A tree as far as its rows have been added."""

    def __init__(self) -> None:
        nothing = np.zeros(0, dtype=np.int64)
        self.questions = 0
        self._line = nothing  # the row that was added last
        self._path = nothing  # its nodes, root first
        self._asked = nothing  # the question about each of its tokens, -1 where there is none
        self._tokens: list[np.ndarray] = []
        self._depth: list[np.ndarray] = []
        self._count = 0
        self._leaves: list[int] = []
        self._closed: list[tuple[np.ndarray, int]] = []  # nodes, and one past the last node below them
        self._paths: dict[int, np.ndarray] = {}  # first node of a chain -> what leads to it
        self._question_nodes: list[np.ndarray] = []
        self._question_tokens: list[np.ndarray] = []

    def add(self, line: np.ndarray, start: int) -> np.ndarray:
        """Add a row whose completion begins at `start`; the questions about the completion's tokens."""
        known, kept = _shared(self._line, line), _kept(self._line, line)
        new = np.arange(self._count, self._count + len(line) - 1 - kept)
        self._closed.append((self._path[kept:], self._count))
        if len(new):
            if kept < len(self._path):
                self._paths[int(self._path[kept])] = self._path[:kept]
            self._paths[self._count] = self._path[:kept]
            self._tokens.append(line[kept:-1])
            self._depth.append(np.arange(kept, len(line) - 1))
            self._count += len(new)
        self._path = np.concatenate([self._path[:kept], new])
        self._leaves.append(int(self._path[-1]))
        asked = np.full(len(line), -1, dtype=np.int64)
        asked[:known] = self._asked[:known]
        fresh = start + np.flatnonzero(asked[start:] < 0)
        asked[fresh] = np.arange(self.questions, self.questions + len(fresh))
        self.questions += len(fresh)
        self._question_nodes.append(self._path[fresh - 1])
        self._question_tokens.append(line[fresh])
        self._line, self._asked = line, asked
        return asked[start:]

    def tree(self, answers: np.ndarray, order: Sequence[int]) -> TokenTree:
        end = np.empty(self._count, dtype=np.int64)
        for nodes, last in (*self._closed, (self._path, self._count)):
            end[nodes] = last
        nodes = np.concatenate(self._question_nodes)
        by_node = np.argsort(nodes, kind="stable")
        heads, question_head = np.unique(nodes[by_node], return_inverse=True)
        number = np.empty(self.questions + 1, dtype=np.int64)
        number[by_node] = np.arange(self.questions)
        number[-1] = self.questions  # of padding, which is -1
        starts = sorted(self._paths)
        return TokenTree(
            tokens=torch.from_numpy(np.concatenate(self._tokens)),
            depth=torch.from_numpy(np.concatenate(self._depth)),
            end=torch.from_numpy(end),
            heads=torch.from_numpy(heads),
            question_head=torch.from_numpy(question_head),
            question_token=torch.from_numpy(np.concatenate(self._question_tokens)[by_node]),
            answers=torch.from_numpy(number[answers]),
            places=torch.tensor(order),
            rows=torch.tensor(order),
            leaves=torch.tensor(self._leaves),
            questions_before=torch.from_numpy(np.searchsorted(question_head, np.arange(len(heads) + 1))),
            chains=tuple(
                Chain(start, after - start, self._paths[start])
                for start, after in pairwise([*starts, self._count])
            ),
        )


def _line(given: Trajectories, row: int) -> np.ndarray:
    return np.array([*given.prompts[row], *given.completions[row]], dtype=np.int64)


def _shared(first: np.ndarray, second: np.ndarray) -> int:
    """Length of what both begin with."""
    length = min(len(first), len(second))
    apart = np.flatnonzero(first[:length] != second[:length])
    return int(apart[0]) if len(apart) else length


def _kept(before: np.ndarray, line: np.ndarray) -> int:
    """How many nodes of the row before are the next row's too. A last token is no node."""
    return min(_shared(before, line), max(len(before) - 1, 0), len(line) - 1)
