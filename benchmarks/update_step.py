"""What PMPO's exponent costs in an update of the main job: `python benchmarks/update_step.py`.

SmolLM2, its engine and the sizes of examples/arithmetic-smollm2.yaml: one rollout batch is sampled, then the
step's updates (minibatches x epochs) are made by PMPO and by the same loss with p fixed at 1, in turns, from
the same weights each time. The promise, at most 1.02, is finer than two noisy times of seconds can be told
apart. So the objective's own time is taken inside every update (loss and distance to GRPO, as both objectives
record them; the backward pass of either is one multiplication of [B, T]) and the ratio is

    1 + (objective of PMPO - objective of p = 1) / update of p = 1.

Times are CPU seconds of the process, medians over rounds.
"""

import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rollouts_models import Models
from rollouts_service import serving
from round_ours import running
from round_work import Work

from powermean.contracts.algorithms import Pmpo, PowerMean
from powermean.home import Home
from trainer.loop import sample_and_grade, with_advantages
from trainer.objectives import Algorithm, LossOutput, build_algorithm
from trainer.rollouts.batching import minibatches
from trainer.rollouts.dynamic_sampling import GradedRollouts
from trainer.run import seed_all, use_threads
from trainer.run_context import Run
from trainer.seeds import generator


@dataclass(frozen=True)
class Timed(Algorithm):
    """An objective that adds up the CPU seconds spent in it."""

    spent: list[float] = field(default_factory=list)

    def loss(self, *args: object, **more: object) -> LossOutput:
        """See Algorithm."""
        start = time.process_time()
        out = super().loss(*args, **more)  # type: ignore[arg-type]
        self.spent.append(time.process_time() - start)
        return out


@dataclass
class Bench:
    """A run with one rollout batch; steps start from the same weights and an optimiser without a past."""

    run: Run
    graded: GradedRollouts
    start: dict[str, torch.Tensor]

    def rewind(self) -> None:
        """Back to the start, with the optimiser's memory already in place: its first use costs extra."""
        learner = self.run.learner
        with torch.no_grad():
            for name, weight in learner.policy.model.named_parameters():
                weight.copy_(self.start[name])
                for value in learner.optimizer.state[weight].values():
                    value.zero_()

    def step(self, algorithm: Timed) -> list[tuple[float, float, float]]:
        """(update s, objective s, share of trajectories whose p was solved) of each update of a step."""
        self.rewind()
        learner, dealt = self.run.learner, self.dealt()
        learner.algorithm = algorithm
        batch = with_advantages(self.run, 1, self.graded)
        learner.score_start(batch, dealt[: self.run.spec.training.minibatches])
        found = []
        for number, groups in enumerate(dealt):
            algorithm.spent.clear()
            start = time.process_time()
            report = learner.update(batch, groups, number)
            seconds = time.process_time() - start
            p = report.values["p"][report.rows]
            found.append((seconds, sum(algorithm.spent), float(((p > 0) & (p < 1)).double().mean())))
        return found

    def dealt(self) -> list[list[int]]:
        """The groups of each update of the step, as trainer/loop.py deals them."""
        training, seed = self.run.spec.training, self.run.spec.seed
        return [
            groups
            for epoch in range(training.epochs)
            for groups in minibatches(
                training.prompts_per_step, training.minibatches, generator(seed, "minibatch", 1, epoch)
            )
        ]


@contextmanager
def opened(work: Work) -> Iterator[Bench]:
    """A batch sampled by the rollout service; the weights at the start."""
    use_threads(1)
    seed_all(work.spec.seed)
    with serving("transformers", work.folder) as service, running(work, service) as run:
        graded = sample_and_grade(run, run.engine, 1, lambda _step, _number: None).graded
        weights = run.learner.policy.model.named_parameters()
        yield Bench(run, graded, {name: weight.detach().clone() for name, weight in weights})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="an untrained toy model: quick, says nothing")
    parser.add_argument(
        "--data-dir", type=Path, default=Home.find().folder / "node", help="where the converted model lies"
    )
    options = parser.parse_args()
    objectives = {
        name: Timed(**vars(build_algorithm(one)))
        for name, one in (("fixed", PowerMean(p=1.0)), ("pmpo", Pmpo()))
    }
    rounds: dict[str, list[list[tuple[float, float, float]]]] = defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="powermean-benchmark-models-") as scratch:
        work = Work(Models(options.data_dir, Path(scratch)), "tiny" if options.tiny else "smollm2")
        with opened(work) as bench:
            for turn in range(options.rounds + 1):
                for name, algorithm in objectives.items():
                    seen = bench.step(algorithm)
                    if turn:  # the first round warms up
                        rounds[name].append(seen)
    print(f"{work.name}, CPU, float32, {torch.get_num_threads()} thread(s), {options.rounds} rounds")
    print("update   solved   update s   p = 1 ms   pmpo ms   share of pmpo   pmpo / p = 1   measured whole")
    columns = []
    for place in range(len(rounds["pmpo"][0])):
        update, fixed = (statistics.median(seen[place][i] for seen in rounds["fixed"]) for i in (0, 1))
        whole, pmpo, solved = (statistics.median(seen[place][i] for seen in rounds["pmpo"]) for i in range(3))
        ratio = 1 + (pmpo - fixed) / update
        columns.append((solved, update, 1e3 * fixed, 1e3 * pmpo, pmpo / update, ratio, whole / update))
        print_row(str(place + 1), columns[-1])
    print_row("mean", tuple(statistics.fmean(column) for column in zip(*columns, strict=True)))


def print_row(name: str, row: tuple[float, ...]) -> None:
    """One line of the table."""
    solved, update, fixed, pmpo, share, ratio, whole = row
    line = f"{name:>6} {solved:8.0%} {update:10.2f} {fixed:10.2f} {pmpo:9.2f}"
    print(f"{line} {share:15.3%} {ratio:12.4f} {whole:16.3f}")


if __name__ == "__main__":
    main()
