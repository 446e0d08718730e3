// The cluster's lanes as rows, bars and strips. No DOM, no network: times are milliseconds.

// What an attempt does, in the order of a step, and the colour of each (--s1 to --s9).
export const ACTIVITIES = [
  { name: "sampling", color: 1 },
  { name: "scoring", color: 6 },
  { name: "updating", color: 2 },
  { name: "publishing", color: 3 },
  { name: "evaluating", color: 4 },
  { name: "saving", color: 9 },
  { name: "preparing", color: 7 },
];

const COLOURS = 6;

// One row a lane, from the top; `first`: the lane begins a node. `nodes`: as GET /v1/nodes has them.
export function rowsOf({ lanes, since }, nodes) {
  const known = new Map(nodes.map((node) => [node.id, node]));
  return lanes.map((lane, i) => {
    const node = known.get(lane.node);
    const gpu = node?.gpus.find((one) => one.uuid === lane.gpu);
    const out = outOfUse(lane, node, gpu);
    return {
      label: lane.gpu ? `${lane.slot}` : `slot ${lane.slot}`,
      node: lane.node,
      first: i === 0 || lanes[i - 1].node !== lane.node,
      note: out || (lane.engine ? `shared engine ${lane.engine} holds it now` : ""),
      held: lane.spans.some((span) => span.end === null),
      freeSince: Math.max(Date.parse(since), ...lane.spans.map((span) => Date.parse(span.end ?? since))),
      gauge: gaugeOf(gpu),
    };
  });
}

function outOfUse(lane, node, gpu) {
  if (!lane.known) return "not connected";
  if (gpu?.unhealthy) return `out of use: ${gpu.unhealthy}`;
  return node?.closed ? [node.closed, node.closed_reason].filter(Boolean).join(": ") : "";
}

// "87 %  61 GiB", or nothing where the node does not report it.
function gaugeOf(gpu) {
  const parts = [];
  if (Number.isFinite(gpu?.utilisation)) parts.push(`${Math.round(gpu.utilisation)} %`);
  if (Number.isFinite(gpu?.memory_used_mb)) parts.push(`${Math.round(gpu.memory_used_mb / 1024)} GiB`);
  return parts.join("  ");
}

// Each attempt on a lane; `mine` is null for what the viewer may not see.
export function barsOf({ lanes, attempts, until }) {
  return lanes.flatMap((lane, row) =>
    lane.spans.map((span) => ({
      row,
      from: Date.parse(span.start),
      to: Date.parse(span.end ?? until),
      held: span.end === null,
      attempt: span.attempt,
      mine: span.attempt === null ? null : attempts[span.attempt],
    })),
  );
}

// The activities along each bar: each lasts until the next one, or until the bar's end.
export function stripsOf(data) {
  const since = Date.parse(data.since);
  return barsOf(data).flatMap((bar) => {
    const phases = bar.mine?.phases ?? [];
    return phases
      .map(([seconds, activity], i) => ({
        row: bar.row,
        from: Math.max(bar.from, since + 1000 * seconds),
        to: Math.min(bar.to, i + 1 < phases.length ? since + 1000 * phases[i + 1][0] : bar.to),
        activity,
      }))
      .filter((strip) => strip.to > strip.from);
  });
}

// A colour for each project that is seen, the same whoever comes first on the lanes.
export function projectColours({ attempts }) {
  const names = [...new Set(Object.values(attempts).map((attempt) => attempt.project))].sort();
  return new Map(names.map((name, i) => [name, (i % COLOURS) + 1]));
}

export function activityAt(strips, row, at) {
  return strips.find((strip) => strip.row === row && strip.from <= at && at < strip.to)?.activity ?? null;
}
