// The arithmetic of curves: ticks, averages, the nearest point, and the path on the screen.
"use strict";

// Return about `count` round numbers from `low` to `high`; on a log scale 1, 2 and 5 of each decade.
function ticks(low, high, count, log) {
  const found = [];
  if (log) {
    for (let decade = 10 ** Math.floor(Math.log10(low)); decade <= high; decade *= 10)
      for (const digit of [1, 2, 5]) if (digit * decade >= low && digit * decade <= high) found.push(digit * decade);
    if (found.length >= 2) return found.filter((_, i) => i % Math.ceil(found.length / (count + 2)) === 0);
    found.length = 0;
  }
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((digit) => digit * power).find((width) => width >= rough);
  for (let tick = Math.ceil(low / step); tick * step <= high * (1 + 1e-9); tick++) found.push(tick * step);
  return found;
}

// Return a moving average of the values; `amount` is 0 (none) to 100. It looks as far ahead as back: an
// average of earlier values alone would lag behind the curve.
function smooth(values, amount) {
  const most = Math.max(0, Math.min(0.995, 1 - 20 / values.length)); // of few values, it covers fewer
  const weight = Math.min(most, 1 - (1 - amount / 100) ** 2);
  if (!weight) return values;
  const averages = new Float64Array(values.length);
  for (const [begin, end, step] of [[0, values.length, 1], [values.length - 1, -1, -1]]) {
    let mean = 0, total = 0;
    for (let i = begin; i !== end; i += step) {
      mean = weight * mean + (1 - weight) * values[i];
      total = weight * total + (1 - weight);
      averages[i] += mean / total / 2;
    }
  }
  return averages;
}

// Return the number of the first of the sorted `values` that is at least `value`.
function firstFrom(values, value) {
  let low = 0, high = values.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (values[middle] < value) low = middle + 1;
    else high = middle;
  }
  return low;
}

// Return the number of the one of the sorted `values` that is nearest to `value`.
function nearest(values, value) {
  const i = Math.min(firstFrom(values, value), values.length - 1);
  return i > 0 && value - values[i - 1] <= values[i] - value ? i - 1 : i;
}

// Return the SVG path through the points [first, end), at the pixels x(…), y(…). Of the points in one column
// of pixels, the first, the lowest, the highest and the last are drawn: the others would not be seen.
function pathOf(xs, ys, first, end, x, y) {
  const parts = [];
  const add = (i) => parts.push(Math.round(10 * x(xs[i])) / 10, Math.round(10 * y(ys[i])) / 10);
  for (let i = first; i < end; ) {
    const column = Math.floor(x(xs[i]));
    let low = i, high = i, next = i;
    for (; next < end && Math.floor(x(xs[next])) === column; next++) {
      if (ys[next] < ys[low]) low = next;
      if (ys[next] > ys[high]) high = next;
    }
    const shown = [i, Math.min(low, high), Math.max(low, high), next - 1];
    shown.forEach((one, n) => one !== shown[n - 1] && add(one));
    i = next;
  }
  return parts.length ? `M${parts.join(" ")}` : "";
}
