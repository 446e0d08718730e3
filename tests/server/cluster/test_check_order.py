"""Whose checks go out next: laws of the choice."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from server.cluster.check_order import ROOM, Check, Out, choose

ABLE = {"anywhere": ("n1", "n2", "n3"), "two": ("n2", "n3"), "one": ("n1",), "nowhere": ()}
QUEUES = st.sampled_from(("n1", "n2", "n3"))
PROJECTS = st.sampled_from("abcd")


def lines(sizes: list[tuple[str, str, int, str | None]]) -> list[Check]:
    return [Check(id_, f"job-{id_}", *one) for id_, one in enumerate(sizes)]


WAITING = st.lists(
    st.tuples(PROJECTS, st.sampled_from(list(ABLE)), st.integers(0, 9), st.none() | QUEUES), max_size=30
).map(lines)
OUT = st.builds(
    Out,
    st.dictionaries(QUEUES, st.integers(0, ROOM + 2)),
    st.dictionaries(PROJECTS, st.integers(0, 9)),
    st.dictionaries(PROJECTS, st.integers(0, 99)),
)


@given(WAITING, OUT, st.integers(0, 20))
def test_no_project_waits_while_one_with_more_checks_out_gets_more(waiting: list[Check], out: Out, most: int):
    chosen = choose(waiting, ABLE.__getitem__, out, most)
    held, count = Counter(out.by_queue), Counter(out.by_project)
    sent: set[int] = set()
    for check, queue in chosen:
        could = {
            one.project
            for one in waiting
            if one.id not in sent and any(held[able] < ROOM for able in ABLE[one.demand])
        }
        assert all(count[check.project] <= count[project] for project in could)
        sent.add(check.id)
        held[queue] += 1
        count[check.project] += 1
    left = [one for one in waiting if one.id not in sent]
    assert len(chosen) == most or all(held[able] >= ROOM for one in left for able in ABLE[one.demand])


@given(WAITING, OUT, st.integers(0, 20))
def test_nodes_get_no_more_than_they_have_room_for_and_only_what_they_can_do(
    waiting: list[Check], out: Out, most: int
):
    chosen = choose(waiting, ABLE.__getitem__, out, most)
    assert len(chosen) == len({check.id for check, _ in chosen}) <= most
    assert all(queue in ABLE[check.demand] for check, queue in chosen)
    for queue, number in Counter(queue for _, queue in chosen).items():
        assert out.by_queue.get(queue, 0) + number <= ROOM


@given(WAITING, OUT, st.integers(0, 20))
def test_how_projects_checks_lie_among_each_other_does_not_matter(waiting: list[Check], out: Out, most: int):
    by_project = sorted(waiting, key=lambda check: check.project)  # the order within a project stays
    assert choose(by_project, ABLE.__getitem__, out, most) == choose(waiting, ABLE.__getitem__, out, most)


def test_projects_take_turns_however_few_go_out_at_once():
    waiting = lines([(project, "one", 0, None) for project in "aaaabbbbcccc"])
    turns: dict[str, int] = {}
    order = []
    for number in range(1, 10):
        out = Out({"n1": ROOM - 1}, {}, turns)  # what went out is settled by then
        (found, _), *_ = choose(waiting, ABLE.__getitem__, out, 100)
        waiting.remove(found)
        turns[found.project] = number
        order.append(found.project)
    assert order == list("abcabcabc")


def test_a_check_that_is_sent_again_goes_elsewhere_if_it_can():
    again = Check(1, "job-1", "a", "two", 3, "n2")
    full = Out({"n3": ROOM}, {})
    assert choose([again], ABLE.__getitem__, Out({"n3": ROOM - 1}, {}), 9) == [(again, "n3")]
    assert choose([again], ABLE.__getitem__, full, 9) == [(again, "n2")]
