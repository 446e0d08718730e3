// All charts of a job's page. Metric names and meanings come from powermean/contracts/metrics.py.
//
// series: metric name, label, colour 1-9 (--s1.. in base.css), each once in a chart, style: line (default), dashed, marks,
// stack, and pool: how the updates of a step's last pass become one value (mean by default).
// lines: labelled reference lines. unit: the y axis' title. y: fixed ends of the axis, see valueAxis in plot.js.
// A group names the tab that shows it; `overview` charts are on the first tab as well.
// figure: "lines" by default. only: kinds of exponent rules (exponent.js). behind: the values are of the trajectories with a p.
import { counterFigure } from "./counters.js";
import { exponentRule } from "./exponent.js";
import { exponentFigure } from "./exponent_plot.js";
import { lineFigure } from "./lines.js";
import { lostFigure } from "./lost.js";
import { whyFigure } from "./why.js";

const FIGURES = { lines: lineFigure, exponent: exponentFigure, why: whyFigure, lost: lostFigure, counters: counterFigure };

export const CHARTS = [
  { group: "Learning", tab: "charts", overview: true },
  {
    id: "p",
    title: "Exponent p over the run",
    figure: "exponent",
    size: "wide",
    overview: true,
    series: [
      { name: "p/mean", label: "mean of an update" },
      { name: "p/last_pass/mean", label: "mean" },
      { name: "p/last_pass/q10", label: "10 % quantile" },
      { name: "p/last_pass/min", label: "lowest" },
      { name: "p/last_pass/below_1", label: "p < 1" },
      { name: "p/last_pass/defined", label: "with p" },
      { name: "p/last_pass/undefined", label: "no p" },
    ],
  },
  { id: "why", title: "Why this p: clip fraction", figure: "why", series: [], only: ["chosen"] },
  {
    id: "reward",
    title: "Reward",
    overview: true,
    series: [
      { name: "reward", label: "training, mean of the batch", color: 1 },
      { name: "eval/reward", label: "held-out", color: 2, style: "marks" },
    ],
    unit: "reward",
    y: { min: 0, max: 1 },
  },
  {
    id: "ess",
    title: "Weight lost to few tokens: 1 − N",
    figure: "lost",
    series: [
      { name: "ess/at_1", label: "GRPO's weights, 1 − N(1)" },
      { name: "ess/mean", label: "as trained, 1 − N(p)" },
      { name: "ess/target", label: "target, 1 − N*" },
    ],
    only: ["chosen", "fixed", "scheduled"],
  },
  {
    id: "clip",
    title: "Clip fraction",
    series: [
      { name: "clip_fraction/mean", label: "mean", color: 1 },
      { name: "clip_fraction/q90", label: "90 % quantile", color: 4 },
      { name: "clip_ratio/low_mean", label: "low", color: 6, style: "dashed" },
      { name: "clip_ratio/high_mean", label: "high", color: 2, style: "dashed" },
    ],
    unit: "tokens",
    y: { share: true },
    behind: true,
  },
  {
    id: "distance",
    title: "Distance to GRPO",
    series: [{ name: "distance_to_grpo", label: "|g_p − g_1| / |g_0 − g_1|", color: 1 }],
    unit: "0: GRPO, 1: GMPO",
    y: { min: 0 },
    behind: true,
  },
  {
    id: "spread",
    title: "Reward spread",
    series: [
      { name: "reward_std", label: "std within groups", color: 1 },
      { name: "frac_reward_zero_std", label: "groups without spread (share)", color: 2, style: "dashed" },
    ],
    unit: "reward, share",
    y: { min: 0, max: 1 },
  },
  { group: "Optimisation", tab: "charts" },
  { id: "loss", title: "Loss", series: [{ name: "loss", label: "loss", color: 1 }], unit: "loss" },
  {
    id: "grad_norm",
    title: "Gradient norm",
    series: [{ name: "grad_norm", label: "before clipping", color: 1 }],
    unit: "norm",
    y: { min: 0 },
  },
  {
    id: "entropy",
    title: "Entropy",
    series: [{ name: "entropy", label: "nats per token", color: 1 }],
    unit: "nats",
    y: { min: 0 },
  },
  {
    id: "ratio",
    title: "Importance ratio",
    series: [
      { name: "ratio/max", label: "largest", color: 2, pool: "max" },
      { name: "ratio/min", label: "smallest", color: 6, pool: "min" },
    ],
    lines: [{ value: 1, label: "on-policy" }],
    unit: "ratio",
  },
  {
    id: "learning_rate",
    title: "Learning rate",
    series: [{ name: "learning_rate", label: "learning rate", color: 1 }],
    unit: "learning rate",
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
    unit: "tokens",
    y: { min: 0 },
  },
  {
    id: "throughput",
    title: "Throughput",
    series: [{ name: "tokens_per_second", label: "tokens/s", color: 1 }],
    unit: "tokens/s",
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
      { name: "time/step", label: "whole step", color: 8 },
      { name: "time/wait", label: "wait for a batch", color: 9, style: "dashed" },
    ],
    unit: "s",
    y: { min: 0 },
  },
  {
    id: "sampling_kl",
    title: "Engine and trainer: KL",
    series: [
      { name: "sampling/kl", label: "KL(rollout ‖ trainer)", color: 1 },
      { name: "sampling/kl_truncated", label: "truncated", color: 7, style: "dashed" },
    ],
    unit: "nats",
  },
  {
    id: "logp_difference",
    title: "Engine and trainer: log-probs",
    series: [
      { name: "sampling/sampling_logp_difference/max", label: "largest difference, sampling", color: 1 },
      { name: "publish/logp_difference_max", label: "after publish", color: 2, style: "dashed" },
    ],
    unit: "nats",
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
    unit: "ratio",
  },
  {
    id: "staleness",
    title: "Staleness of trajectories",
    series: [
      { name: "staleness/mean", label: "mean", color: 1 },
      { name: "staleness/max", label: "largest", color: 7, style: "dashed" },
      { name: "staleness/share_mixed", label: "share of several versions", color: 2, style: "dashed" },
    ],
    unit: "versions, share",
    y: { min: 0 },
  },
  {
    id: "counters",
    title: "What went wrong, by step",
    figure: "counters",
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

// What a tab shows: its groups with their headings, or the few charts of the overview. Without tabs: all.
function chartsOf(tab) {
  if (tab === undefined) return CHARTS;
  if (tab === "overview") return CHARTS.filter((chart) => chart.overview);
  let group = null;
  return CHARTS.filter((chart) => {
    if (chart.group) group = chart;
    return group.tab === tab;
  });
}

// The headings ({ group }) and figures of a tab that suit the job's objective, in order.
export function figures(job, tab) {
  const { kind } = exponentRule(job.algorithm);
  return chartsOf(tab)
    .filter((chart) => !chart.only || chart.only.includes(kind))
    .map((chart) => (chart.group ? chart : FIGURES[chart.figure ?? "lines"](chart, job)));
}
