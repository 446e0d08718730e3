"""Engine and trainer compared over a batch: what is recorded of it, raw and truncated."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from powermean.contracts.metrics import IMPORTANCE_RATIOS, METRICS
from tests.trainer.objectives.objective_batches import Batch, batches
from trainer.objectives import Mismatch, mismatch, raw_weights, truncated

KINDS = ("off", "token", "sequence", "sequence_mean")
CAPS = st.floats(1.0, 5.0)


def compared(batch: Batch, kind: str = "token", cap: float = 2.0) -> Mismatch:
    """The log-ratios of the batch are trainer minus engine; the engine's log-probs are all -1."""
    return mismatch(batch.x - 1, torch.full_like(batch.x, -1.0), batch.mask, kind, cap)


@given(batches(), CAPS)
def test_law_truncation_only_lowers_and_the_cap_is_the_most(batch: Batch, cap: float) -> None:
    found = compared(batch, cap=cap)
    for name in IMPORTANCE_RATIOS.values():
        if f"{name}/mean" not in found.metrics:
            assert not batch.mask.any()
            continue
        for which in ("min", "mean", "max"):
            assert found.metrics[f"{name}/{which}"] <= found.metrics[f"{name}/raw_{which}"] + 1e-12
            assert found.metrics[f"{name}/{which}"] <= cap * (1 + 1e-6)  # a mean rounds
        some = found.metrics[f"{name}/share_truncated"] > 0
        assert some == (found.metrics[f"{name}/raw_max"] > cap)
    known = ~found.kl.isnan()
    assert (found.kl[known] >= -1e-12).all()
    assert (found.kl_truncated[known] <= found.kl[known] + 1e-12).all()


@given(batches(), CAPS)
def test_law_what_is_recorded_does_not_depend_on_the_weight_that_acts(batch: Batch, cap: float) -> None:
    """But for the one that acted: the truncated weight of the spec's kind, nothing where it is off."""
    plain = compared(batch, "off", cap)
    assert plain.applied.isnan().all()
    for kind in KINDS[1:]:
        found = compared(batch, kind, cap)
        assert found.metrics == plain.metrics
        for name in ("kl", "kl_truncated", "token_ratio", "sequence_ratio"):
            torch.testing.assert_close(getattr(found, name), getattr(plain, name), equal_nan=True)
        acting = truncated(raw_weights(batch.x, torch.zeros_like(batch.x), batch.mask, kind), cap)
        assert acting is not None
        for row, mask in enumerate(batch.mask):
            expected = acting[row][mask].mean() if acting.dim() == 2 else acting[row]
            if mask.any():
                assert found.applied[row].item() == pytest.approx(float(expected))
            else:
                assert found.applied[row].isnan()


@given(batches())
def test_law_equal_log_probs_have_weight_1_and_no_kl(batch: Batch) -> None:
    same = mismatch(batch.x, batch.x, batch.mask, "sequence", 2.0)
    known = batch.mask.any(-1)
    for name in ("token_ratio", "sequence_ratio", "applied"):
        assert (getattr(same, name)[known] == 1).all()
    assert (same.kl[known] == 0).all()
    assert all(value in (0.0, 1.0) for value in same.metrics.values())


@given(batches())
def test_law_trajectories_that_are_not_known_change_nothing(batch: Batch) -> None:
    """Their log-probs are NaN, as of groups that nothing was trained on."""
    one = compared(batch)
    more = mismatch(
        torch.cat([batch.x - 1, torch.full_like(batch.x, torch.nan)]),
        torch.full((2 * len(batch.x), batch.x.shape[1]), -1.0, dtype=batch.x.dtype),
        torch.cat([batch.mask, batch.mask]),
        "token",
        2.0,
    )
    assert more.metrics == pytest.approx(one.metrics)
    assert more.kl[len(batch.x) :].isnan().all()
    torch.testing.assert_close(more.kl[: len(batch.x)], one.kl, equal_nan=True)


def test_all_names_are_metrics() -> None:
    x = torch.tensor([[0.5, -0.5]], dtype=torch.float64)
    found = compared(Batch(x, torch.ones_like(x, dtype=torch.bool), torch.ones(1)))
    assert set(found.metrics) <= set(METRICS)
    assert len(found.metrics) == 4 + 3 * 7
