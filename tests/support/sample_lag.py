"""p and ESS by lag of a run whose sampling ran up to two updates ahead."""

from powermean.contracts.lag import JobLag, LagNumbers, LagRow


def numbers(p: float | None, **more: float) -> LagNumbers:
    """What an update made of a lag's trajectories, p spread by 0.1 to either side."""
    if p is None:
        return LagNumbers(defined=0, **more)
    return LagNumbers(defined=20, p=p, p_q10=p - 0.1, p_median=p, p_q90=p + 0.1, **more)


def sample_lag(*lags: int) -> JobLag:
    """Rows of these lags (default: 0, 1 and 2): the older the data, the smaller p."""
    rows = [
        LagRow(
            lag=lag,
            trajectories=32,
            mixed=lag,
            tokens=320,
            sampling_kl=0.01 * lag,
            token_weight=1.0 + 0.1 * lag,
            first=numbers(0.95 - 0.1 * lag if lag else None, ess=1 - 0.01 * lag, clip_fraction=0.02 * lag),
            last=numbers(
                0.9 - 0.2 * lag, ess=0.98 - 0.02 * lag, ess_at_1=0.95 - 0.05 * lag, clip_fraction=0.1 * lag
            ),
        )
        for lag in (lags or (0, 1, 2))
    ]
    return JobLag(first_step=3, last_step=9, rows=tuple(rows))
