// What the x-axis of all charts counts: steps, tokens, time paid for, or dollars.
"use strict";

const AXES = {
  step: { by: "step", read: (value) => `step ${whole(value)}`, unit: () => [1, ""], of: () => (point) => point[0] },
  tokens: {
    by: "tokens trained on",
    read: (value) => `${whole(value)} tokens`,
    unit: () => [1, ""],
    of(run, stage) {
      const each = run.tokens_per_step?.[stage];
      return each && ((point) => point[0] * each);
    },
  },
  time: {
    by: "time of all machines",
    read: (value) => duration(value),
    unit: (extent) => (extent < 180 ? [1, " s"] : extent < 10800 ? [60, " min"] : [3600, " h"]),
    of(run) {
      const spent = spending(run.paid ?? []);
      return run.paid?.length ? (point) => spent(point[2])[0] : null;
    },
  },
  dollars: {
    by: "dollars",
    read: (value) => `$${value.toFixed(4)}`,
    unit: () => [1, "$"],
    of(run) {
      const spent = spending(run.paid ?? []);
      return run.paid?.some(([, , price]) => price) ? (point) => spent(point[2])[1] : null;
    },
  },
};

// Return a function from a time in Unix seconds to the [seconds, dollars] that were paid for until then.
// `paid` has [begin, end, dollars per hour or null] of each process; two may run at once.
function spending(paid) {
  const changes = paid.flatMap(([begin, end, price]) => [[begin, 1, price ?? 0], [end, -1, -(price ?? 0)]]);
  changes.sort((a, b) => a[0] - b[0]);
  const known = []; // [time, seconds, dollars, machines, dollars per hour]
  let machines = 0, price = 0;
  for (const [at, more, dearer] of changes) {
    const [seconds, money] = since(known.at(-1), at);
    machines += more;
    price += dearer;
    known.push([at, seconds, money, machines, price]);
  }
  return (at) => {
    let low = 0, high = known.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (known[middle][0] <= at) low = middle + 1;
      else high = middle;
    }
    return since(known[low - 1], at);
  };
}

function since(known, at) {
  if (!known) return [0, 0];
  const [from, seconds, money, machines, price] = known;
  return [seconds + (at - from) * machines, money + ((at - from) * price) / 3600];
}

// A value on the axis; `extent` is the width of what is shown.
function onAxis(axis, value, extent) {
  const [scale, word] = axis.unit(extent);
  return word === "$" ? `$${short(value)}` : `${short(value / scale)}${word}`;
}
