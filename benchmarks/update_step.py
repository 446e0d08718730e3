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
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event

import torch
import yaml

from powermean.contracts.algorithms import Pmpo, PowerMean
from powermean.contracts.job import JobSpec
from powermean.contracts.rollout import GenerateRequest, Sampling
from powermean.end_tokens import end_tokens
from powermean.home import Home
from rollout.engine import Fence
from rollout.transformers.engine import Limits, TransformersEngine
from trainer.data.source import open_source
from trainer.learner.learner import Learner
from trainer.learner.optimizer import make_optimizer
from trainer.learner.tokenizing import decode, encode_prompts, load_tokenizer, pad_token_id
from trainer.learner.training_batch import TrainingBatch
from trainer.models.resolve import resolve_model
from trainer.objectives import Algorithm, DistanceParts, LossOutput, build_algorithm
from trainer.policy.loading import load_policy
from trainer.policy.policy import Policy
from trainer.rewards.isolation import open_grader
from trainer.rollouts.batching import Rollouts, collate, minibatches
from trainer.seeds import generator

JOB = Path(__file__).parent.parent / "examples" / "arithmetic-smollm2.yaml"


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

    def distance_to_grpo(self, *args: object, **more: object) -> DistanceParts:
        """See Algorithm."""
        start = time.process_time()
        out = super().distance_to_grpo(*args, **more)  # type: ignore[arg-type]
        self.spent.append(time.process_time() - start)
        return out


@dataclass(frozen=True)
class Sampled:
    """One rollout batch with its rewards [N]."""

    rollouts: Rollouts
    rewards: torch.Tensor


def sampled(spec: JobSpec, policy: Policy, folder: Path) -> Sampled:
    """The first rollout batch of the job, by the engine that the job names, in this process."""
    tokenizer = load_tokenizer(folder)
    engine = TransformersEngine(
        policy.model,
        tokenizer,
        Fence("benchmark", attempt=1, version=0),
        weights=None,  # type: ignore[arg-type]  # nothing is published: the engine holds the policy itself
        limits=Limits(max_model_len=512, max_batch_tokens=8192),
        end_tokens=end_tokens(folder),
    )
    problems = open_source(spec.data, None).batch(1, spec.training.prompts_per_step, spec.seed)
    prompts = encode_prompts(tokenizer, problems)
    rollout = spec.rollout
    sampling = Sampling(
        temperature=rollout.temperature,
        max_new_tokens=rollout.max_new_tokens,
        stop=rollout.stop,
        seed=spec.seed,
    )
    request = GenerateRequest(prompts=tuple(prompts), n=rollout.group_size, sampling=sampling)
    found = collate(prompts, engine.generate(request, Event()).completions, pad_token_id(tokenizer))
    answers = [problem.answer for problem in problems for _ in range(rollout.group_size)]
    texts = [
        decode(tokenizer, row[kept].tolist()) for row, kept in zip(found.tokens, found.mask, strict=True)
    ]
    with open_grader(spec.reward) as grader:
        grades = grader.grade(list(zip(texts, answers, strict=True)))
    return Sampled(found, torch.tensor([grade.reward for grade in grades], dtype=torch.float64))


@dataclass
class Bench:
    """The job's learner; every step starts from the same weights and an optimiser without a past."""

    spec: JobSpec
    learner: Learner
    batch: Sampled
    start: dict[str, torch.Tensor]

    def rewind(self) -> None:
        """Back to the start, with the optimiser's memory already in place: its first use costs extra."""
        with torch.no_grad():
            for name, weight in self.learner.policy.model.named_parameters():
                weight.copy_(self.start[name])
                for value in self.learner.optimizer.state[weight].values():
                    value.zero_()
        self.learner.updates = self.spec.optimizer.warmup_updates  # the full learning rate

    def step(self, algorithm: Timed) -> list[tuple[float, float, float]]:
        """(update s, objective s, share of trajectories whose p was solved) of each update of a step."""
        self.rewind()
        self.learner.algorithm = algorithm
        rollouts, rewards = self.batch.rollouts, self.batch.rewards
        batch = TrainingBatch.start(
            1,
            rollouts,
            advantages=algorithm.advantages(rewards, rollouts.group),
            kept=algorithm.keep(rewards, rollouts.group),
            rewards=rewards,
            progress=0.0,
            max_new_tokens=self.spec.rollout.max_new_tokens,
        )
        dealt = self.dealt()
        for groups in dealt[1 : self.spec.training.minibatches]:  # the first update scores its own
            self.learner.score(batch, groups)
        found = []
        for number, groups in enumerate(dealt):
            algorithm.spent.clear()
            start = time.process_time()
            report = self.learner.update(batch, groups, number)
            seconds = time.process_time() - start
            p = report.values["p"][report.rows]
            found.append((seconds, sum(algorithm.spent), float(((p > 0) & (p < 1)).double().mean())))
        return found

    def dealt(self) -> list[list[int]]:
        """The groups of each update of the step, as trainer/loop.py deals them."""
        training = self.spec.training
        return [
            groups
            for epoch in range(training.epochs)
            for groups in minibatches(
                training.prompts_per_step,
                training.minibatches,
                generator(self.spec.seed, "minibatch", 1, epoch),
            )
        ]


def open_bench(spec: JobSpec, data_dir: Path) -> Bench:
    """Load the model (converted on first use), sample a batch, and make one update to warm up."""
    folder = resolve_model(spec.model, data_dir, ())
    policy = load_policy(
        folder, device=torch.device("cpu"), dtype=torch.float32, temperature=spec.rollout.temperature
    )
    learner = Learner(
        policy=policy,
        reference=None,
        algorithm=build_algorithm(spec.algorithm),
        spec=spec.optimizer,
        optimizer=make_optimizer(policy.model, spec.optimizer),
        micro_batch_tokens=1024,
        pad_token_id=0,
    )
    start = {name: weight.detach().clone() for name, weight in policy.model.named_parameters()}
    return Bench(spec, learner, sampled(spec, policy, folder), start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--data-dir", type=Path, default=Home.find().folder / "node", help="where the converted model lies"
    )
    options = parser.parse_args()
    spec = JobSpec.model_validate(yaml.safe_load(JOB.read_text()))
    bench = open_bench(spec, options.data_dir)
    objectives = {
        name: Timed(**vars(build_algorithm(one)))
        for name, one in (("fixed", PowerMean(p=1.0)), ("pmpo", Pmpo()))
    }
    rounds: dict[str, list[list[tuple[float, float, float]]]] = defaultdict(list)
    for turn in range(options.rounds + 1):
        for name, algorithm in objectives.items():
            seen = bench.step(algorithm)
            if turn:  # the first round warms up
                rounds[name].append(seen)
    print(f"{JOB.stem}, CPU, float32, {torch.get_num_threads()} thread(s), {options.rounds} rounds")
    print("update   solved   update s   p = 1 ms   pmpo ms   share of pmpo   pmpo / p=1   measured whole")
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
