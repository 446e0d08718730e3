"""benchmarks/rollouts.py: what it prints, what it measures, and that a tiny run leaves nothing behind."""

import subprocess
import sys
from pathlib import Path

import pytest
from rollouts_models import Models, job
from rollouts_publish import ADAPTER_WAYS, IN_PLACE, NOT_OFFERED, WAYS, Sent
from rollouts_publish import cells as publish_cells
from rollouts_service import counted
from rollouts_steps import Ran, a_step, job_spec
from rollouts_steps import cells as step_cells
from rollouts_table import Table, ratio
from rollouts_tokens import Measured, Plain, Workload, sampled, turned, workloads

from powermean.contracts.rollout import AdapterSlots, EngineState
from powermean.processes import marked
from trainer.learner.tokenizing import load_tokenizer

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "rollouts.py"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("models"))


def test_a_table_is_markdown_with_its_notes() -> None:
    table = Table("Speed", ("what", "s"), left=1)
    table.add("long name", "1.5")
    table.notes.append("vllm: not here")
    assert table.text().splitlines() == [
        "Speed:",
        "",
        "| what      |   s |",
        "|-----------|----:|",
        "| long name | 1.5 |",
        "vllm: not here",
    ]
    with pytest.raises(ValueError, match="1 cells for 2"):
        table.add("x")


def test_ratios_have_a_base() -> None:
    assert ratio(3.0, 2.0) == "1.50"
    assert ratio(3.0, 0.0) == "-"


def test_another_peer_begins_in_each_round() -> None:
    assert [turned("abc", number) for number in range(3)] == [list("abc"), list("bca"), list("cab")]
    assert turned((), 3) == []


def test_the_rate_is_the_median_of_rounds() -> None:
    assert Measured(tokens=[10, 10, 30], seconds=[1.0, 5.0, 1.0]).rate == 10.0


def test_pads_after_a_completion_are_no_tokens() -> None:
    assert sampled([4, 0, 5, 0, 0], pad=0) == 3
    assert sampled([0, 0], pad=0) == 0


def test_a_counter_is_summed_over_its_labels() -> None:
    page = '# HELP a_total x\na_total{engine="0"} 2.0\na_total{engine="1"} 3.0\na_total_created 9\nb 1\n'
    assert counted(page, "a_total") == 5.0
    assert counted(page, "c_total") == 0.0


def test_rounds_have_new_prompts_and_only_a_group_shares_its_examples(models: Models) -> None:
    tokenizer = load_tokenizer(models.folder("tiny"))
    long, step, few_shot = workloads()
    assert (long.prompts * long.n, long.max_new_tokens, long.stop) == (64, 64, ())
    assert (step.prompts, step.n, step.stop) == (8, 8, ("\n",))
    first, again, second = (step.request(tokenizer, number) for number in (1, 1, 2))
    assert first == again
    assert first.prompts != second.prompts
    prompts = few_shot.request(tokenizer, 1).prompts
    assert min(map(len, prompts)) > 128  # a block of vLLM's cache on a CPU
    assert len({prompt[:20] for prompt in prompts}) == len(prompts)


def test_plain_generate_gives_the_length_that_was_asked_for(models: Models) -> None:
    folder = models.without_end("tiny")
    request = Workload("x", prompts=3, n=2, max_new_tokens=5).request(load_tokenizer(folder), 1)
    assert Plain(folder).complete(request) == 3 * 2 * 5


def test_plain_generate_stops_at_the_stop_string(models: Models) -> None:
    folder = models.without_end("tiny")
    every = tuple("\n +-*=0123456789?<")  # all characters: each completion has one token
    request = Workload("x", 3, 2, max_new_tokens=5, stop=every).request(load_tokenizer(folder), 1)
    assert Plain(folder).complete(request) <= 3 * 2


def test_what_an_engine_does_not_offer_is_said() -> None:
    state = EngineState(
        ready=True,
        engine="vllm",
        model="m",
        version=0,
        attempt=1,
        max_model_len=1,
        methods=("store",),
    )
    assert [way.offered(state) for way in (*WAYS, *IN_PLACE)] == [True, False, False, False]
    assert not any(way.offered(state) for way in ADAPTER_WAYS)
    adapters = AdapterSlots(slots=1, taken=0, max_rank=16)
    state = state.model_copy(update={"methods": ("store", "shm"), "adapters": adapters})
    assert not any(way.offered(state) for way in WAYS)
    assert all(way.offered(state) for way in ADAPTER_WAYS)
    found = {
        "store": [Sent(1.0, 2.0, 2_000_000, 1.0, 3_000_000), Sent(2.0, 3.0, 2_000_000, 2.0, 5_000_000)],
        "shm": [Sent(1.0, 1.0, 1, 0.5, 10**6)],
    }
    assert publish_cells(found, "store", "store") == ("2.0", "1.500", "2.500", "4.000", "1.00", "1.50", "4")
    assert publish_cells(found, "shm", "store")[-4:] == ("2.000", "0.50", "0.50", "1")
    assert NOT_OFFERED in publish_cells(found, "gloo", "store")


def test_steps_are_timed_from_arrival_to_arrival() -> None:
    jobs = [Ran((10.0, 12.0, 15.0), {"update": 1.0}), Ran((1.0, 5.0), {"update": 3.0})]
    assert a_step(jobs) == 3.0
    assert step_cells({0: jobs, 1: [Ran((0.0, 1.5), {})]}, 0)[:4] == ("3.00", "1.00", "0.00", "2.00")
    assert step_cells({0: jobs, 1: [Ran((0.0, 1.5), {})]}, 1)[:2] == ("1.50", "0.50")


def test_jobs_differ_in_engine_and_staleness_alone() -> None:
    one, other = job_spec("smollm2", "vllm", 0, 3), job_spec("smollm2", "transformers", 1, 3)
    assert (one.rollout.engine, one.rollout.max_staleness, one.training.steps) == ("vllm", 0, 3)
    same = {"engine": "vllm", "max_staleness": 0}
    assert other.rollout.model_copy(update=same) == one.rollout
    assert other.training == one.training
    assert job("tiny").model.folder == "tiny"


@pytest.mark.long
@pytest.mark.integration
def test_a_tiny_run_prints_all_tables_and_leaves_nothing_behind(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--model", "tiny", "--engine", "transformers"]
    command += ["--rounds", "1", "--steps", "2", "--data-dir", str(tmp_path / "data")]
    mark = {"POWERMEAN_TEST_RUN": str(tmp_path)}
    (tmp_path / "tmp").mkdir()
    done = subprocess.run(
        command,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(SCRIPT.parents[1]), "TMPDIR": str(tmp_path / "tmp")}
        | mark,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for title in ("Tokens a second", "A publish of float32 weights", "The main job on tiny"):
        assert title in done.stdout
    assert "failed" not in done.stdout
    assert list((tmp_path / "tmp").glob("powermean-*")) == []
    assert marked("POWERMEAN_TEST_RUN", str(tmp_path)) == set()
