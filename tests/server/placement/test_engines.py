"""Which engines serve a LoRA job: those that it would find by asking each."""

from itertools import product

from server.jobs.demand import AdapterNeed
from server.placement.engines import Catalogue
from server.placement.state import SharedEngine


def test_needs_on_and_between_the_bounds_of_engines_get_all_that_fit_and_no_other() -> None:
    engines = [
        SharedEngine(
            f"{rank}-{tokens}-{reach}", "shared", "m", "bfloat16", "ready", 4, rank, tokens, "n", reach
        )
        for rank, tokens, reach in product((8, 16), (1024, 2048, None), ("n", None))
    ]
    catalogue = Catalogue(engines)
    for rank, tokens, near in product((7, 8, 9, 16, 17), (1023, 1024, 1025, 2048, 2049), (True, False)):
        need = AdapterNeed("m", "bfloat16", rank, tokens, required=True, same_host=near)
        fitting = [
            one.id
            for one in engines
            if rank <= one.max_lora_rank
            and (one.max_tokens is None or tokens <= one.max_tokens)
            and (not near or one.reach is not None)
        ]
        assert list(catalogue.serving(need, "a").ids) == fitting


def test_only_what_is_ready_and_open_to_the_project_serves() -> None:
    engines = [
        SharedEngine("all", "all", "m", "bfloat16", "ready", 4, 8, None, "n", None),
        SharedEngine("starting", "starting", "m", "bfloat16", "starting", 4, 8, None, "n", None),
        SharedEngine("b", "b", "m", "bfloat16", "ready", 4, 8, None, "n", None, projects=frozenset({"b"})),
    ]
    catalogue = Catalogue(engines)
    need = AdapterNeed("m", "bfloat16", 8, 100, required=True)
    found = {project: catalogue.serving(need, project) for project in ("a", "b", "a")}
    assert {project: serving.ids for project, serving in found.items()} == {
        "a": ("all", "starting"),
        "b": ("all", "starting", "b"),
    }
    assert {project: [one.id for one in serving.ready] for project, serving in found.items()} == {
        "a": ["all"],
        "b": ["all", "b"],
    }
