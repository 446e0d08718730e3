"""From a spec to an algorithm. Adding one is a spec model, an entry here, its tests and a line of docs."""

from functools import partial

import torch
from torch import Tensor

from powermean.contracts.algorithms import (
    AlgorithmSpec,
    Apmpo,
    Cispo,
    Dapo,
    DrGrpo,
    Gmpo,
    Grpo,
    Gspo,
    Holder,
    Pmpo,
    PowerMean,
)
from trainer.objectives.advantages import has_spread, mean_centred, standardised
from trainer.objectives.clipping import ClipRange
from trainer.objectives.exponents import Annealed, ClipAware, Fixed, RewardDriven
from trainer.objectives.kernel import Algorithm
from trainer.objectives.reference_kl import BetaControl
from trainer.objectives.surrogates import (
    BatchFacts,
    ConstantClip,
    DetachedRatioSurrogate,
    PowerMeanSurrogate,
    RewardAdaptiveClip,
)


def per_trajectory(tokens: Tensor, batch: BatchFacts) -> Tensor:
    """w_i = 1/B: every trajectory counts the same."""
    return torch.full_like(tokens, 1 / batch.trajectories)


def per_token(tokens: Tensor, batch: BatchFacts) -> Tensor:
    """w_i = T_i / sum T: every token of the minibatch counts the same."""
    return tokens / batch.tokens


def per_token_slot(tokens: Tensor, batch: BatchFacts) -> Tensor:
    """w_i = T_i / (B L_max): a token sum over a constant, so that length is not rewarded."""
    return tokens / (batch.trajectories * batch.max_tokens)


def keep_all(rewards: Tensor, group: Tensor) -> Tensor:
    """Every completion stays in the batch."""
    return torch.ones_like(group, dtype=torch.bool)


def _log_clip(spec: Pmpo | Gmpo | PowerMean) -> ConstantClip:
    return ConstantClip(ClipRange(spec.clip_low, spec.clip_high))


def _ratio_clip(spec: Grpo | Holder | Gspo | DrGrpo | Dapo) -> ConstantClip:
    return ConstantClip(ClipRange.from_ratio(spec.epsilon_low, spec.epsilon_high))


def _clip_aware(spec: Pmpo) -> ClipAware:
    measured_in = None if spec.ess_clip_range is None else ClipRange(*spec.ess_clip_range)
    return ClipAware(spec.ess_target, spec.clip_fraction, spec.clip_fraction_full, measured_in)


def build_algorithm(spec: AlgorithmSpec) -> Algorithm:
    """The immutable objective that a job's `algorithm` section describes."""
    base = partial(
        Algorithm,
        name=spec.name,
        advantage=standardised,
        weight=per_trajectory,
        keep_group=keep_all,
        beta=spec.beta,
        beta_control=None if spec.kl_target is None else BetaControl(spec.kl_target, spec.kl_horizon),
        entropy_coefficient=spec.entropy_coefficient,
        importance_sampling_correction=spec.importance_sampling_correction,
        importance_sampling_clip_max=spec.importance_sampling_clip_max,
    )
    match spec:
        case Pmpo():
            return base(surrogate=PowerMeanSurrogate(_clip_aware(spec), _log_clip(spec)))
        case Grpo():
            return base(surrogate=PowerMeanSurrogate(Fixed(1.0), _ratio_clip(spec)))
        case Gmpo():
            return base(surrogate=PowerMeanSurrogate(Fixed(0.0), _log_clip(spec)))
        case PowerMean():
            return base(surrogate=PowerMeanSurrogate(Fixed(spec.p), _log_clip(spec)))
        case Holder():
            rule = Annealed(spec.p_start, spec.p_end)
            return base(surrogate=PowerMeanSurrogate(rule, _ratio_clip(spec), by_sequence=True))
        case Apmpo():
            clip = RewardAdaptiveClip(spec.epsilon_base, spec.epsilon_amplitude, spec.delta)
            return base(surrogate=PowerMeanSurrogate(RewardDriven(spec.reward_decay), clip))
        case Gspo():
            return base(surrogate=PowerMeanSurrogate(Fixed(0.0), _ratio_clip(spec), by_sequence=True))
        case DrGrpo():
            surrogate = PowerMeanSurrogate(Fixed(1.0), _ratio_clip(spec))
            return base(surrogate=surrogate, advantage=mean_centred, weight=per_token_slot)
        case Dapo():
            return base(
                surrogate=PowerMeanSurrogate(Fixed(1.0), _ratio_clip(spec)),
                weight=per_token,
                keep_group=has_spread,
                sampling_rounds=spec.sampling_rounds,
                overlong_buffer=spec.overlong_buffer,
                overlong_penalty=spec.overlong_penalty,
            )
        case Cispo():
            return base(surrogate=DetachedRatioSurrogate(spec.ratio_cap), weight=per_token)
