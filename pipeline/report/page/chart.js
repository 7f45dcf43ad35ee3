// A chart of curves over steps: SVG, with a read-out by pointer and arrow keys.
"use strict";

const SVG = "http://www.w3.org/2000/svg";
const LEFT = 46, RIGHT = 8, TOP = 6, BOTTOM = 20; // pixels around the plot

function draw(tag, attributes, text) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

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

// Return the points with a moving average of their values; `amount` is 0 (none) to 100. It looks as far
// ahead as back: an average of earlier points alone would lag behind the curve.
function smooth(points, amount) {
  const most = Math.max(0, Math.min(0.995, 1 - 20 / points.length)); // of few points, it covers fewer
  const weight = Math.min(most, 1 - (1 - amount / 100) ** 2);
  const values = points.map(([, value]) => value);
  const back = averaged(values, weight), ahead = averaged(values.reverse(), weight).reverse();
  return points.map(([step], i) => [step, (back[i] + ahead[i]) / 2]);
}

function averaged(values, weight) {
  let mean = 0, total = 0;
  return values.map((value) => {
    mean = weight * mean + (1 - weight) * value;
    total = weight * total + (1 - weight);
    return mean / total;
  });
}

// Return the number of the step that is nearest to `step`. `stepOf(i)` is the step number `i`, in order.
function nearest(count, stepOf, step) {
  let low = 0, high = count - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (stepOf(middle) < step) low = middle + 1;
    else high = middle;
  }
  return low > 0 && step - stepOf(low - 1) <= stepOf(low) - step ? low - 1 : low;
}

class Chart {
  // `format` shows a value in the read-out.
  constructor(place, title, format) {
    this.format = format;
    this.series = [];
    this.attempts = [];
    this.log = false;
    this.steps = []; // all steps at which a curve has a point
    this.step = null; // where the read-out is: one of `steps`
    this.title = title;
    this.legend = make("div", { class: "legend" });
    this.plot = make("div", { class: "plot", tabindex: "0", role: "img", "aria-label": title });
    this.readout = make("div", { class: "readout", "aria-live": "polite", hidden: "" });
    place.append(make("h3", {}, title), this.plot, this.legend, this.readout);
    this.plot.addEventListener("pointermove", (event) => this.point(event));
    this.plot.addEventListener("pointerdown", (event) => this.point(event));
    // A finger leaves at the end of a tap: the read-out stays until the next one.
    this.plot.addEventListener("pointerleave", (event) => event.pointerType === "touch" || this.read(null));
    this.plot.addEventListener("blur", () => this.read(null));
    this.plot.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.render()).observe(this.plot);
  }

  // Show series of {label, points, raw, color, kind}, where kind is "line", "raw" or "held", and
  // `raw` are the values before they were smoothed, if they were.
  show(series, attempts, log) {
    this.series = series.filter((one) => one.points.length);
    this.attempts = attempts;
    this.log = log && this.series.every((one) => one.points.every((point) => point[1] > 0));
    const named = this.series.filter((one) => one.kind !== "raw");
    this.legend.replaceChildren(
      ...(named.length < 2 ? [] : named).map((one) => make("span", {}, make("i", { class: `swatch b${one.color}` }), one.label)),
    );
    this.steps = [...new Set(this.series.flatMap((one) => one.points.map((point) => point[0])))].sort((a, b) => a - b);
    const last = named.map((one) => `${one.label} ${this.format((one.raw ?? one.points).at(-1)[1])} at step ${one.points.at(-1)[0]}`);
    this.plot.setAttribute("aria-label", `${this.title}: ${last.join(", ") || "nothing yet"}`);
    this.render();
  }

  render() {
    const width = this.plot.clientWidth, height = this.plot.clientHeight;
    if (!width) return;
    if (!this.series.length) {
      this.plot.replaceChildren(make("p", { class: "empty" }, "nothing yet"));
      return;
    }
    this.scale(width, height);
    const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
    for (const value of ticks(this.low, this.high, Math.max(3, height / 42), this.log)) {
      const y = this.y(value);
      svg.append(draw("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y, y2: y }));
      svg.append(draw("text", { class: "tick", x: LEFT - 6, y: y + 4, "text-anchor": "end" }, short(value)));
    }
    for (const step of ticks(this.first, this.last, Math.max(2, width / 110), false)) {
      if (step % 1) continue;
      svg.append(draw("text", { class: "tick", x: this.x(step), y: height - 4, "text-anchor": "middle" }, short(step)));
    }
    for (const step of this.attempts)
      if (step > this.first) svg.append(draw("line", { class: "attempt", x1: this.x(step), x2: this.x(step), y1: TOP, y2: height - BOTTOM }));
    for (const one of this.series) {
      const path = one.points.map(([step, value], i) => `${i ? "L" : "M"}${this.x(step).toFixed(1)} ${this.y(value).toFixed(1)}`);
      svg.append(draw("path", { class: `line ${one.kind} s${one.color}`, d: path.join("") }));
      if (one.points.length === 1) svg.append(draw("circle", { class: `point s${one.color}`, cx: this.x(one.points[0][0]), cy: this.y(one.points[0][1]), r: 3 }));
    }
    this.marks = draw("g", {});
    svg.append(this.marks);
    this.plot.replaceChildren(svg);
    this.read(this.step);
  }

  scale(width, height) {
    const values = this.series.flatMap((one) => one.points.map((point) => point[1]));
    const steps = this.series.flatMap((one) => [one.points[0][0], one.points.at(-1)[0]]);
    const lowest = values.reduce((a, b) => Math.min(a, b)), highest = values.reduce((a, b) => Math.max(a, b));
    const of = this.log ? Math.log10 : (value) => value;
    const spread = of(highest) - of(lowest), most = Math.abs(of(highest));
    // Values that are equal but for rounding are one line, not a curve with a billionth's ticks.
    const margin = spread > 1e-9 * most ? spread * 0.04 : most * 0.05 || 1;
    const back = this.log ? (value) => 10 ** value : (value) => value;
    this.low = back(of(lowest) - margin);
    this.high = back(of(highest) + margin);
    this.first = Math.min(...steps);
    this.last = Math.max(...steps, this.first + 1);
    this.x = (step) => LEFT + ((step - this.first) / (this.last - this.first)) * (width - LEFT - RIGHT);
    this.y = (value) => TOP + ((of(this.high) - of(value)) / (of(this.high) - of(this.low))) * (height - TOP - BOTTOM);
  }

  point(event) {
    if (!this.series.length) return;
    const box = this.plot.getBoundingClientRect();
    const share = (event.clientX - box.left - LEFT) / (box.width - LEFT - RIGHT);
    this.read(this.first + Math.min(1, Math.max(0, share)) * (this.last - this.first));
  }

  key(event) {
    const end = this.steps.length - 1;
    const now = this.step === null ? end : this.steps.indexOf(this.step);
    const far = Math.ceil(end / 20);
    const to = { ArrowLeft: now - 1, ArrowRight: now + 1, PageUp: now - far, PageDown: now + far, Home: 0, End: end }[event.key];
    if (to === undefined || end < 0) return;
    event.preventDefault();
    this.read(this.steps[Math.min(end, Math.max(0, to))]);
  }

  // Show the points nearest to `step`, each with its own step; null: show none.
  read(step) {
    const at = step === null ? undefined : this.steps[nearest(this.steps.length, (i) => this.steps[i], step)];
    this.step = at ?? null;
    this.readout.hidden = this.step === null;
    if (!this.marks) return;
    this.marks.replaceChildren();
    if (this.readout.hidden) return;
    const x = this.x(at), height = this.plot.clientHeight;
    this.marks.append(draw("line", { class: "cursor", x1: x, x2: x, y1: TOP, y2: height - BOTTOM }));
    const rows = [];
    for (const one of this.series) {
      // A curve has no value before its first and after its last point.
      if (one.kind === "raw" || at < one.points[0][0] || at > one.points.at(-1)[0]) continue;
      const i = nearest(one.points.length, (number) => one.points[number][0], at);
      const [own, drawn] = one.points[i];
      this.marks.append(draw("circle", { class: `point s${one.color}`, cx: this.x(own), cy: this.y(drawn), r: 3.5 }));
      const label = own === at ? one.label : `${one.label}, step ${whole(own)}`;
      const raw = this.format((one.raw ?? one.points)[i][1]);
      const smoothed = raw === this.format(drawn) ? "" : ` (smoothed ${this.format(drawn)})`;
      rows.push(make("div", {}, make("i", { class: `swatch b${one.color}` }), label, make("b", {}, raw), smoothed));
    }
    this.readout.replaceChildren(make("div", { class: "faint" }, `step ${whole(at)}`), ...rows);
    const width = this.plot.clientWidth, own = this.readout.offsetWidth;
    const left = x > width / 2 ? x - own : x + 24;
    this.readout.style.left = `${Math.max(0, Math.min(left, width - own))}px`;
  }
}
