// A chart of curves: SVG, with a read-out by pointer and arrow keys, and a zoom by dragging.
// curves.py has thinned the points.
"use strict";

const SVG = "http://www.w3.org/2000/svg";
const LEFT = 46, RIGHT = 8, TOP = 6, BOTTOM = 20; // pixels around the plot
const DRAGGED = 6; // pixels that the pointer must move to choose a range

function draw(tag, attributes, text) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

class Chart {
  // `zoom` is called with the range [from, to] of x that a person chose, or null for everything.
  constructor(name, zoom) {
    this.name = name;
    this.format = formatOf(name);
    this.zoom = zoom;
    this.series = [];
    this.at = null; // where the read-out is
    this.dragged = null; // where the pointer went down, and where it is now
    this.title = make("h3", {});
    this.legend = make("div", { class: "legend" });
    this.plot = make("div", { class: "plot", tabindex: "0", role: "img" });
    this.readout = make("div", { class: "readout", "aria-live": "polite", hidden: "" });
    const save = (word, act) => {
      const button = make("button", { type: "button", class: "save", "aria-label": `save ${titleOf(name)} as ${word}` }, word);
      button.addEventListener("click", act);
      return button;
    };
    this.head = make("div", { class: "chart-head" }, this.title, save("CSV", () => saveCsv(this)), save("PNG", () => savePng(this)));
    this.element = make("div", { class: "chart", "data-metric": name }, this.head, this.plot, this.legend, this.readout);
    const on = (kind, act) => this.plot.addEventListener(kind, act);
    on("pointerdown", (event) => this.press(event));
    on("pointermove", (event) => this.move(event));
    on("pointerup", (event) => this.release(event));
    on("pointercancel", () => this.drag(null));
    // A finger leaves at the end of a tap: the read-out stays until the next one.
    on("pointerleave", (event) => event.pointerType === "touch" || this.read(null));
    on("dblclick", () => this.zoom(null));
    on("blur", () => this.read(null));
    on("keydown", (event) => this.key(event));
    this.observer = new ResizeObserver(() => this.render());
    this.observer.observe(this.plot);
  }

  // Show series of {label, run, color, kind, step, x, y, measured}. `kind` is "line", "raw", "held" or "edge"; `y` are
  // the values to draw, and `measured` those before they were smoothed. `shown` has the axis, the range of x or
  // null, where attempts begin, where phases begin and what they read, and whether the scale is a log scale.
  show(series, shown) {
    this.series = series.filter((one) => one.x.length);
    this.axis = shown.axis;
    this.range = shown.range;
    this.attempts = shown.attempts;
    this.borders = shown.borders;
    this.log = shown.log && this.series.every((one) => one.y.every((value) => value > 0));
    const title = `${titleOf(this.name)}, by ${this.axis.by}`;
    this.title.textContent = title;
    const named = this.series.filter((one) => one.label);
    this.legend.replaceChildren(
      ...(named.length < 2 ? [] : named).map((one) => make("span", {}, make("i", { class: `swatch b${one.color}` }), one.label)),
    );
    const last = named.map((one) => `${one.label} ${this.format(one.measured.at(-1))} at step ${one.step.at(-1)}`);
    this.plot.setAttribute("aria-label", `${title}: ${last.join(", ") || "nothing yet"}`);
    this.render();
  }

  render() {
    const width = this.plot.clientWidth, height = this.plot.clientHeight;
    if (!width || !this.axis) return;
    this.marks = null;
    if (!this.series.length) {
      this.plot.replaceChildren(make("p", { class: "empty" }, "nothing yet"));
      return;
    }
    this.scale(width, height);
    const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
    for (const value of ticks(this.low, this.high, Math.max(3, height / 42), this.log)) {
      const y = this.y(value);
      svg.append(draw("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y, y2: y }));
      svg.append(draw("text", { class: "tick", x: LEFT - 6, y: y + 4, "text-anchor": "end" }, tickOf(this.name)(value)));
    }
    const extent = this.last - this.first, [unit] = this.axis.unit(extent);
    for (const tick of ticks(this.first / unit, this.last / unit, Math.max(2, width / 110), false)) {
      if (this.axis === AXES.step && tick % 1) continue;
      const x = this.x(tick * unit);
      const anchor = x > width - 22 ? "end" : "middle"; // a label never leaves the chart
      svg.append(draw("text", { class: "tick", x: anchor === "end" ? width : x, y: height - 4, "text-anchor": anchor }, onAxis(this.axis, tick * unit, extent)));
    }
    const inside = draw("svg", { class: "inside", x: LEFT, y: 0, width: width - LEFT - RIGHT, height, viewBox: `${LEFT} 0 ${width - LEFT - RIGHT} ${height}` });
    for (const x of this.attempts)
      if (x > this.first && x < this.last) inside.append(draw("line", { class: "attempt", x1: this.x(x), x2: this.x(x), y1: TOP, y2: height - BOTTOM }));
    this.borders.forEach(([at, words], n) => {
      if (at <= this.first || at >= this.last) return;
      const x = this.x(at), left = x > (LEFT + width) / 2; // the words are on the side with more room
      inside.append(draw("line", { class: "border", x1: x, x2: x, y1: TOP, y2: height - BOTTOM }));
      inside.append(draw("text", { class: "tick mix", x: x + (left ? -4 : 4), y: TOP + 11 + 13 * n, "text-anchor": left ? "end" : "start" }, words));
    });
    for (const one of this.series) {
      const [first, end] = this.visible(one, 1);
      const path = pathOf(one.x, one.y, first, end, (x) => this.x(x), (y) => this.y(y));
      inside.append(draw("path", { class: `line ${one.kind} s${one.color}`, d: path }));
      if (end - first === 1) inside.append(draw("circle", { class: `point s${one.color}`, cx: this.x(one.x[first]), cy: this.y(one.y[first]), r: 3 }));
    }
    this.marks = draw("g", {});
    svg.append(inside, this.marks);
    this.plot.replaceChildren(svg);
    this.read(this.at);
  }

  // The numbers [first, end) of a series' points in the range that is shown, with `more` on either side.
  visible(one, more = 0) {
    const first = firstFrom(one.x, this.first), end = firstFrom(one.x, this.last);
    const last = end < one.x.length && one.x[end] === this.last ? end + 1 : end;
    return [Math.max(0, first - more), Math.min(one.x.length, last + more)];
  }

  scale(width, height) {
    const range = this.range ?? [Math.min(...this.series.map((one) => one.x[0])), Math.max(...this.series.map((one) => one.x.at(-1)))];
    this.first = range[0];
    this.last = range[1] > range[0] ? range[1] : range[0] + 1;
    let lowest = Infinity, highest = -Infinity;
    const around = (more) => {
      for (const one of this.series) {
        const [first, end] = this.visible(one, more);
        for (let i = first; i < end; i++) {
          if (one.y[i] < lowest) lowest = one.y[i];
          if (one.y[i] > highest) highest = one.y[i];
        }
      }
    };
    around(0);
    if (lowest > highest) around(1); // only lines between points outside
    if (lowest > highest) lowest = highest = 1;
    const of = this.log ? Math.log10 : (value) => value;
    const spread = of(highest) - of(lowest), most = Math.abs(of(highest));
    // Values that are equal but for rounding are one line, not a curve with a billionth's ticks.
    const margin = spread > 1e-9 * most ? spread * 0.04 : most * 0.05 || 1;
    const back = this.log ? (value) => 10 ** value : (value) => value;
    this.low = back(of(lowest) - margin);
    this.high = back(of(highest) + margin);
    const bottom = of(this.low), wide = (width - LEFT - RIGHT) / (this.last - this.first), tall = (height - TOP - BOTTOM) / (of(this.high) - bottom);
    this.x = (x) => LEFT + (x - this.first) * wide;
    this.y = (value) => height - BOTTOM - (of(value) - bottom) * tall;
  }

  // The x under the pointer.
  under(event) {
    const box = this.plot.getBoundingClientRect();
    const part = (event.clientX - box.left - LEFT) / (box.width - LEFT - RIGHT);
    return this.first + Math.min(1, Math.max(0, part)) * (this.last - this.first);
  }

  press(event) {
    if (!this.marks) return;
    this.read(this.under(event));
    if (event.button || event.pointerType === "touch") return; // a finger scrolls and reads
    this.plot.setPointerCapture(event.pointerId);
    this.dragged = [event.clientX, this.under(event), this.under(event)];
  }

  move(event) {
    if (!this.marks) return;
    if (!this.dragged) return this.read(this.under(event));
    this.dragged[2] = this.under(event);
    if (Math.abs(event.clientX - this.dragged[0]) > DRAGGED) this.drag(this.dragged);
  }

  release(event) {
    const chosen = this.dragged;
    this.drag(null);
    if (chosen && Math.abs(event.clientX - chosen[0]) > DRAGGED) this.zoom(chosen.slice(1).sort((a, b) => a - b));
  }

  // Mark the range that is being chosen.
  drag(range) {
    this.dragged = range;
    this.read(null);
    if (!range || !this.marks) return;
    const [from, to] = range.slice(1).map(this.x).sort((a, b) => a - b);
    this.marks.replaceChildren(draw("rect", { class: "chosen", x: from, width: to - from, y: TOP, height: this.plot.clientHeight - TOP - BOTTOM }));
  }

  key(event) {
    if (!this.marks || event.ctrlKey || event.metaKey || event.altKey) return;
    const far = (this.last - this.first) / 20, at = this.at ?? this.last;
    const go = {
      ArrowLeft: () => this.beside(at, -1),
      ArrowRight: () => (this.at === null ? this.last : this.beside(at, 1)),
      PageUp: () => Math.min(at - far, this.beside(at, -1)),
      PageDown: () => Math.max(at + far, this.beside(at, 1)),
      Home: () => this.first,
      End: () => this.last,
    }[event.key];
    const factor = { "+": 0.5, "=": 0.5, "-": 2, "0": Infinity, Escape: Infinity }[event.key];
    if (!go && !factor) return;
    event.preventDefault();
    if (go) return this.read(Math.min(this.last, Math.max(this.first, go())));
    if (factor === Infinity) this.drag(null);
    this.zoom(factor === Infinity ? null : this.zoomed(factor));
  }

  // The range that is `factor` times as wide, around the read-out or the middle; null for everything.
  zoomed(factor) {
    const middle = this.at ?? (this.first + this.last) / 2, wide = (this.last - this.first) * factor;
    const from = Math.min(...this.series.map((one) => one.x[0])), to = Math.max(...this.series.map((one) => one.x.at(-1)));
    const begin = Math.max(from, Math.min(middle - wide / 2, to - wide));
    return wide >= to - from ? null : [begin, begin + wide];
  }

  // The x of the next point of any series after `x`; with -1, of the last one before it.
  beside(x, direction) {
    const found = this.series.map((one) => {
      const i = firstFrom(one.x, x);
      if (direction < 0) return one.x[i - 1] ?? -Infinity;
      let next = i;
      while (next < one.x.length && one.x[next] === x) next++;
      return one.x[next] ?? Infinity;
    });
    return direction < 0 ? Math.max(...found) : Math.min(...found);
  }

  // Show the points nearest to `x`, each with its own step; null: show none.
  read(x) {
    const seen = (one) => one >= this.first && one <= this.last;
    const near = this.series.map((one) => one.x[nearest(one.x, x ?? 0)]).filter(seen);
    const at = x === null || !near.length ? null : near.reduce((a, b) => (Math.abs(b - x) < Math.abs(a - x) ? b : a));
    this.at = at;
    this.readout.hidden = at === null || !this.marks;
    if (!this.marks) return;
    this.marks.replaceChildren();
    if (this.readout.hidden) return;
    const left = this.x(at);
    this.marks.append(draw("line", { class: "cursor", x1: left, x2: left, y1: TOP, y2: this.plot.clientHeight - BOTTOM }));
    const rows = [];
    for (const one of this.series) {
      // A curve has no value before its first and after its last point.
      if (!one.label || at < one.x[0] || at > one.x.at(-1)) continue;
      const i = nearest(one.x, at);
      if (seen(one.x[i])) this.marks.append(draw("circle", { class: `point s${one.color}`, cx: this.x(one.x[i]), cy: this.y(one.y[i]), r: 3.5 }));
      const own = this.axis === AXES.step && one.x[i] === at ? "" : `, step ${whole(one.step[i])}`;
      const measured = this.format(one.measured[i]), drawn = this.format(one.y[i]);
      rows.push(make("div", {}, make("i", { class: `swatch b${one.color}` }), one.label + own, make("b", {}, measured), measured === drawn ? "" : ` (smoothed ${drawn})`));
    }
    this.readout.replaceChildren(make("div", { class: "faint" }, this.axis.read(at)), ...rows);
    const width = this.plot.clientWidth, own = this.readout.offsetWidth;
    const beside = left > width / 2 ? left - own : left + 24;
    this.readout.style.left = `${Math.max(0, Math.min(beside, width - own))}px`;
  }

  // Take the chart from the page.
  remove() {
    this.observer.disconnect();
    this.element.remove();
  }
}
