"""A tree holds each row's tokens once, and its numbers tell what sees what."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support.trajectories import trajectories
from trainer.policy.token_tree import (
    TokenTree,
    micro_batches,
    padded,
    row_batches,
    row_nodes,
    sort_rows,
    token_tree,
)
from trainer.rollouts.batching import Trajectories


def line_of(given_: Trajectories, row: int) -> list[int]:
    return [*given_.prompts[row], *given_.completions[row]]


def assert_holds(tree: TokenTree, given_: Trajectories) -> None:
    """Each question about a row's token is asked of the node whose ancestors are all tokens before it."""
    mask = tree.mask()
    for place, row in enumerate(tree.rows.tolist()):
        line, start = line_of(given_, row), len(given_.prompts[row])
        for t, token in enumerate(given_.completions[row]):
            question = int(tree.answers[place, t])
            assert int(tree.question_token[question]) == token
            node = int(tree.heads[tree.question_head[question]])
            seen = mask[node].nonzero()[:, 0]
            assert tree.tokens[seen].tolist() == line[: start + t]
            assert tree.depth[seen].tolist() == list(range(start + t))
        beyond = tree.answers[place, len(given_.completions[row]) :]
        assert (beyond == len(tree.question_token)).all()


@given(trajectories(), st.integers(1, 40))
def test_law_every_row_with_a_completion_is_asked_once(given_: Trajectories, most: int) -> None:
    rows = []
    for tree in micro_batches(given_, most):
        assert_holds(tree, given_)
        rows += tree.rows.tolist()
        assert tree.size <= most or len(tree.rows) == 1
    assert sorted(rows) == [row for row in range(len(given_)) if given_.completions[row]]


@given(trajectories())
def test_law_nothing_is_there_twice(given_: Trajectories) -> None:
    """Nodes are the distinct beginnings of rows, questions those that end in a completion."""
    order = sort_rows(given_)
    if not order:
        return
    tree = token_tree(given_, order)
    lines = [tuple(line_of(given_, row)) for row in order]
    assert tree.size == len({line[:end] for line in lines for end in range(1, len(line))})
    asked = {
        line[:end]
        for row, line in zip(order, lines, strict=True)
        for end in range(len(given_.prompts[row]) + 1, len(line) + 1)
    }
    assert len(tree.question_token) == len(asked)
    assert tree.question_head.tolist() == sorted(tree.question_head.tolist())
    counts = torch.bincount(tree.question_head, minlength=len(tree.heads))
    assert tree.questions_before.tolist() == [0, *counts.cumsum(0).tolist()]


@given(trajectories())
def test_law_chains_are_paths_and_cover_the_tree(given_: Trajectories) -> None:
    for tree in micro_batches(given_, 1000):
        mask = tree.mask()
        assert [
            node for chain in tree.chains for node in range(chain.start, chain.start + chain.length)
        ] == list(range(tree.size))
        for chain in tree.chains:
            last = chain.start + chain.length - 1
            assert mask[last].nonzero()[:, 0].tolist() == [*chain.path, *range(chain.start, last + 1)]


@given(trajectories())
def test_law_rows_can_be_read_back(given_: Trajectories) -> None:
    for tree in micro_batches(given_, 1000):
        for nodes, row in zip(row_nodes(tree), tree.rows.tolist(), strict=True):
            kept = nodes[nodes >= 0]
            assert tree.tokens[kept].tolist() == line_of(given_, row)[:-1]


@given(trajectories(), st.integers(1, 40))
def test_law_padded_rows_stay_within_the_budget(given_: Trajectories, most: int) -> None:
    rows = []
    for tree in row_batches(given_, most):
        rows += tree.rows.tolist()
        assert row_nodes(tree).numel() <= most or len(tree.rows) == 1
    assert sorted(rows) == [row for row in range(len(given_)) if given_.completions[row]]


def test_the_tree_of_the_drawing() -> None:
    """The example in token_tree.py's docstring; a to h are 1 to 8, the full stop is 9."""
    given_ = Trajectories([[1, 2], [1, 2], [1, 2], [1, 7]], [[3, 4, 9], [3, 5, 9], [3, 4, 6], [8]])
    tree = token_tree(given_, sort_rows(given_))
    assert tree.tokens.tolist() == [1, 2, 3, 4, 5, 7]
    assert tree.depth.tolist() == [0, 1, 2, 3, 3, 1]
    assert tree.end.tolist() == [6, 5, 5, 4, 5, 6]
    asked = [
        (int(tree.heads[h]), int(t)) for h, t in zip(tree.question_head, tree.question_token, strict=True)
    ]
    assert asked == [(1, 3), (2, 4), (2, 5), (3, 6), (3, 9), (4, 9), (5, 8)]
    assert tree.rows.tolist() == [2, 0, 1, 3]


def test_the_tree_of_the_docs() -> None:
    """The example in docs/token-trees.md; a to h are 1 to 8, the full stop is 9."""
    given_ = Trajectories([[1, 2]] * 4 + [[1, 7]], [[3, 4, 9], [3, 5, 9], [3, 4, 6], [3, 4, 9], [8, 9]])
    tree = token_tree(given_, sort_rows(given_))
    assert tree.tokens.tolist() == [1, 2, 3, 4, 5, 7, 8]
    assert tree.depth.tolist() == [0, 1, 2, 3, 3, 1, 2]
    assert tree.end.tolist() == [7, 5, 5, 4, 5, 7, 7]
    assert tree.tokens[tree.heads[tree.question_head]].tolist() == [2, 3, 3, 4, 4, 5, 7, 8]
    assert tree.question_token.tolist() == [3, 4, 5, 6, 9, 9, 8, 9]
    drawn = ["x......", "xx.....", "xxx....", "xxxx...", "xxx.x..", "x....x.", "x....xx"]
    assert tree.mask().tolist() == [[seen == "x" for seen in row] for row in drawn]


def test_padding_sees_only_itself_and_is_asked_nothing() -> None:
    given_ = Trajectories([[1]], [[2, 3]])
    tree = padded(token_tree(given_, [0]), 4)
    assert tree.size == 4
    assert tree.mask().sum(-1).tolist() == [1, 2, 1, 1]
    assert tree.heads.tolist() == [0, 1]


@pytest.mark.parametrize("completions", [[[]], [[], []]])
def test_rows_without_a_completion_make_no_tree(completions: list[list[int]]) -> None:
    assert list(micro_batches(Trajectories([[1]] * len(completions), completions), 10)) == []


def test_a_token_of_two_rows_gets_both_gradients() -> None:
    given_ = Trajectories([[1], [1], [1]], [[2, 3], [2, 3], [2]])
    tree = token_tree(given_, sort_rows(given_))
    answers = torch.zeros(2, requires_grad=True)
    tree.per_token(answers).sum().backward()
    assert answers.grad is not None
    assert answers.grad.tolist() == [3.0, 2.0]
