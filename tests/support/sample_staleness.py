"""p and ESS by staleness of a run whose sampling ran up to two updates ahead."""

from powermean.contracts.staleness import JobStaleness, StalenessNumbers, StalenessRow


def numbers(p: float | None, **more: float) -> StalenessNumbers:
    """What an update made of trajectories of one staleness, p spread by 0.1 to either side."""
    if p is None:
        return StalenessNumbers(defined=0, **more)
    return StalenessNumbers(defined=20, p=p, p_q10=p - 0.1, p_median=p, p_q90=p + 0.1, **more)


def sample_staleness(*values: int) -> JobStaleness:
    """Rows of these values (default: 0, 1 and 2): the staler the data, the smaller p."""
    rows = [
        StalenessRow(
            staleness=staleness,
            trajectories=32,
            mixed=staleness,
            tokens=320,
            sampling_kl=0.01 * staleness,
            importance_sampling_ratio=1.0 + 0.1 * staleness,
            first=numbers(
                0.95 - 0.1 * staleness if staleness else None,
                ess=1 - 0.01 * staleness,
                clip_fraction=0.02 * staleness,
            ),
            last=numbers(
                0.9 - 0.2 * staleness,
                ess=0.98 - 0.02 * staleness,
                ess_at_1=0.95 - 0.05 * staleness,
                clip_fraction=0.1 * staleness,
            ),
        )
        for staleness in (values or (0, 1, 2))
    ]
    return JobStaleness(first_step=3, last_step=9, rows=tuple(rows))
