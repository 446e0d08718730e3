// All charts of a job's page. Metric names and meanings come from powermean/contracts/metrics.py.
//
// series: metric name, label, colour 1-7 (--s1.. in base.css) and style: line (default), dashed, marks, stack.
// A group names the tab that shows it; `overview` charts are on the first tab as well.
// lines: labelled reference lines. y: fixed ends of the axis, extended if the data exceeds them.
export const CHARTS = [
  { group: "Learning", tab: "charts", overview: true },
  {
    id: "reward",
    title: "Reward",
    half: true,
    overview: true,
    series: [
      { name: "reward", label: "training, mean of the batch", color: 1 },
      { name: "eval/reward", label: "held-out", color: 2, style: "marks" },
    ],
    y: { min: 0, max: 1 },
  },
  {
    id: "p",
    title: "Exponent p by update",
    half: true,
    overview: true,
    series: [
      { name: "p/mean", label: "mean", color: 1 },
      { name: "p/q10", label: "10 % quantile", color: 4 },
      { name: "p/share_below_1", label: "share with p < 1", color: 7, style: "dashed" },
    ],
    lines: [
      { value: 1, label: "GRPO, p = 1" },
      { value: 0, label: "GMPO, p = 0" },
    ],
    y: { min: 0, max: 1 },
  },
  {
    id: "ess",
    title: "Effective sample size by update",
    series: [
      { name: "ess/mean", label: "mean N(p)", color: 1 },
      { name: "ess/q10", label: "q10", color: 4 },
      { name: "ess/target", label: "target", color: 3, style: "dashed" },
      { name: "ess/at_1", label: "N(1)", color: 7 },
    ],
    y: { max: 1 },
  },
  {
    id: "clip",
    title: "Clip fraction by update",
    series: [
      { name: "clip_fraction/mean", label: "mean", color: 1 },
      { name: "clip_fraction/q90", label: "q90", color: 4 },
      { name: "clip_ratio/low_mean", label: "low", color: 6, style: "dashed" },
      { name: "clip_ratio/high_mean", label: "high", color: 2, style: "dashed" },
    ],
    y: { min: 0 },
  },
  {
    id: "distance",
    title: "Distance to GRPO",
    series: [{ name: "distance_to_grpo", label: "|g_p − g_1| / |g_0 − g_1|", color: 1 }],
    y: { min: 0 },
  },
  { group: "Optimisation", tab: "charts" },
  { id: "loss", title: "Loss", series: [{ name: "loss", label: "loss", color: 1 }] },
  {
    id: "grad_norm",
    title: "Gradient norm",
    series: [{ name: "grad_norm", label: "before clipping", color: 1 }],
    y: { min: 0 },
  },
  {
    id: "entropy",
    title: "Entropy",
    series: [{ name: "entropy", label: "nats per token", color: 1 }],
    y: { min: 0 },
  },
  {
    id: "spread",
    title: "Reward spread",
    series: [
      { name: "reward_std", label: "std within groups", color: 1 },
      { name: "frac_reward_zero_std", label: "groups without spread", color: 2, style: "dashed" },
    ],
    y: { min: 0 },
  },
  {
    id: "ratio",
    title: "Importance ratio",
    series: [
      { name: "ratio/max", label: "largest", color: 2 },
      { name: "ratio/min", label: "smallest", color: 6 },
    ],
    lines: [{ value: 1, label: "on-policy" }],
  },
  {
    id: "learning_rate",
    title: "Learning rate",
    series: [{ name: "learning_rate", label: "learning rate", color: 1 }],
    y: { min: 0 },
  },
  { group: "Sampling and throughput", tab: "system" },
  {
    id: "lengths",
    title: "Completion length",
    series: [
      { name: "completions/mean_length", label: "mean tokens", color: 1 },
      { name: "completions/max_length", label: "longest", color: 7, style: "dashed" },
    ],
    y: { min: 0 },
  },
  {
    id: "throughput",
    title: "Throughput",
    series: [{ name: "tokens_per_second", label: "tokens/s", color: 1 }],
    y: { min: 0 },
  },
  {
    id: "time",
    title: "Seconds per step",
    series: [
      { name: "time/generate", label: "generate", color: 1, style: "stack" },
      { name: "time/score", label: "score", color: 6, style: "stack" },
      { name: "time/grade", label: "grade", color: 3, style: "stack" },
      { name: "time/update", label: "update", color: 2, style: "stack" },
      { name: "time/publish", label: "publish", color: 4, style: "stack" },
      { name: "time/record", label: "record", color: 5, style: "stack" },
      { name: "time/checkpoint", label: "checkpoint", color: 7, style: "stack" },
      { name: "time/step", label: "whole step", color: 2 },
      { name: "time/wait", label: "wait for a batch", color: 1, style: "dashed" },
    ],
    y: { min: 0 },
  },
  {
    id: "sampling_kl",
    title: "Engine and trainer: KL",
    series: [
      { name: "sampling/kl", label: "KL(rollout ‖ trainer)", color: 1 },
      { name: "sampling/kl_truncated", label: "truncated", color: 7, style: "dashed" },
    ],
  },
  {
    id: "logp_difference",
    title: "Engine and trainer: log-probs",
    series: [
      { name: "sampling/sampling_logp_difference/max", label: "largest difference, sampling", color: 1 },
      { name: "publish/logp_difference_max", label: "after publish", color: 2, style: "dashed" },
    ],
    y: { min: 0 },
  },
  {
    id: "importance_sampling_ratio",
    title: "Engine and trainer: importance-sampling ratio",
    series: [
      { name: "sampling/importance_sampling_ratio/raw_max", label: "token, largest", color: 2 },
      { name: "sampling/importance_sampling_ratio/raw_mean", label: "mean", color: 1 },
      { name: "sampling/importance_sampling_ratio/raw_min", label: "smallest", color: 6 },
      { name: "sampling/sequence_importance_ratio/raw_mean", label: "sequence, mean", color: 4, style: "dashed" },
    ],
    lines: [{ value: 1, label: "equal" }],
  },
  {
    id: "staleness",
    title: "Staleness of trajectories",
    series: [
      { name: "staleness/mean", label: "mean", color: 1 },
      { name: "staleness/max", label: "largest", color: 7, style: "dashed" },
      { name: "staleness/share_mixed", label: "share of several versions", color: 2, style: "dashed" },
    ],
    y: { min: 0 },
  },
  {
    id: "counters",
    title: "What went wrong, by step",
    counters: true,
    series: [
      { name: "grader/failures", label: "grader failures" },
      { name: "completions/clipped_ratio", label: "cut off (share)" },
      { name: "trajectories/non_finite", label: "dropped, not finite" },
      { name: "trajectories/empty", label: "empty" },
      { name: "frac_reward_zero_std", label: "groups without spread (share)" },
      { name: "sampling/groups_dropped", label: "groups sampled, then dropped" },
      { name: "updates/skipped", label: "updates skipped" },
      { name: "ratio/overflow_tokens", label: "tokens above ratio e^20" },
    ],
  },
];

// What a tab of the job's page shows: its groups with their headings, or the few charts of the overview.
export function chartsOf(tab) {
  if (tab === "overview") return CHARTS.filter((chart) => chart.overview);
  let group = null;
  return CHARTS.filter((chart) => {
    if (chart.group) group = chart;
    return group.tab === tab;
  });
}

export function metricNames(charts) {
  return [...new Set(charts.flatMap((chart) => (chart.series ?? []).map((series) => series.name)))];
}
