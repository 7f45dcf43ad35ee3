// The charts: which there are, what they show of which runs, and the controls above them.
"use strict";

const charts = new Map(); // by the name of the metric

const stagesWithCurves = () => Object.keys(STAGES).filter((stage) => known.runs.some((run) => run.metrics?.[stage]?.includes("loss")));

// The stage that is shown: the chosen one; or the newest one that has curves, and of finished runs, the first.
function shownStage() {
  const stages = stagesWithCurves();
  if (stages.includes(view.stage)) return view.stage;
  return stages.at(known.runs.every((run) => run.summary?.state === "done") ? 0 : -1) ?? null;
}

const shownCharts = (stage) => chartNames(known.runs, stage).filter((name) => view.charts.includes(name));

// What to ask the server for.
function wanted() {
  const stage = shownStage();
  const names = shownCharts(stage).flatMap((name) => curvesIn(name, stage)).filter((name) => known.runs.some((run) => run.metrics?.[stage]?.includes(name)));
  const drawn = known.runs.every((run) => !run.summary || run.curves?.[stage]);
  const steps = view.zoom && drawn ? known.runs.map((run) => stepsIn(run, stage, view.zoom)).join(",") : "";
  return { stage, names: [...new Set(["loss", ...names])].join(","), steps: /\d/.test(steps) ? steps : "" };
}

// The steps of a run in a range of the x-axis, as the server is asked for them; "" if that is not known.
function stepsIn(run, stage, [from, to]) {
  const points = run.curves?.[stage]?.loss, of = AXES[view.x].of(run, stage);
  if (!points || !of) return "";
  const inside = points.findIndex((point) => of(point) >= from), after = points.findIndex((point) => of(point) > to);
  const first = inside < 0 ? points.length - 1 : Math.max(0, inside - 1);
  return `${points[first][0]}-${points.at(after < 0 ? -1 : after)[0]}`;
}

// A curve as a chart draws it, of whole curves or of the finer ones.
function lineOf(i, curves, of, name, smoothing, look) {
  const points = Object.hasOwn(curves ?? {}, name) ? curves[name] : [];
  const columns = columnsOf(points, of);
  return { ...look, name, run: i, ...columns, y: smoothing ? smooth(columns.measured, smoothing) : columns.measured };
}

// The columns of points, which are kept as long as the points: most of what a person changes leaves them as they are.
function columnsOf(points, of) {
  const known = columnsOf.known.get(points);
  if (known?.axis === view.x) return known;
  const x = Float64Array.from(points, of);
  for (let n = 1; n < x.length; n++) if (x[n] < x[n - 1]) x[n] = x[n - 1]; // the clocks of two machines differ
  const column = (number) => points.map((point) => point[number]);
  const columns = { axis: view.x, x, step: column(0), measured: Float64Array.from(column(1)), when: column(2) };
  columnsOf.known.set(points, columns);
  return columns;
}
columnsOf.known = new WeakMap();

function seriesOf(name, stage) {
  const several = known.runs.length > 1, series = [], now = JSON.stringify(wanted());
  const smoothingOf = (name) => (isExact(name) ? 0 : view.smoothing);
  const smoothing = smoothingOf(name), second = SECOND[name];
  known.runs.forEach((run, i) => {
    const of = AXES[view.x].of(run, stage);
    if (!run.summary || !of || view.hidden.includes(i)) return;
    // The finer points count if they are of what is shown.
    const { curves } = run.detail && JSON.stringify(run.detail.asked) === now ? run.detail : run;
    const add = (curve, part, look) => series.push(lineOf(i, curves?.[stage], of, curve, part, { color: i, ...look }));
    const sources = sourcesOf(run, stage, name);
    const all = sources.length ? `${several ? `${run.name}, ` : ""}all sources` : null;
    const label = all ?? (several ? run.name : second?.[1] ?? titleOf(name));
    const layers = !sources.length && run.metrics[stage]?.includes(`${name}.lowest`);
    if (smoothing && !layers) add(name, 0, { label: "", kind: "raw" });
    add(name, smoothing, { label: layers ? `${several ? `${run.name}, ` : ""}mean of the layers` : label, kind: "line" });
    if (second) add(second[0], smoothingOf(second[0]), { label: several ? `${run.name}, ${second[2]}` : second[2], kind: "held", color: several ? i : 1 });
    sources.forEach((source, n) =>
      add(source, 0, { label: `${several ? `${run.name}, ` : ""}${source.slice(9)}`, kind: several ? "edge" : "line", color: several ? i : (n + 1) % 8 }),
    );
    for (const edge of layers ? ["lowest", "highest"] : [])
      add(`${name}.${edge}`, smoothing, { label: `${several ? `${run.name}, ` : ""}${edge}`, kind: "edge" });
  });
  return series;
}

// Where steps of the chosen run are on the x-axis.
function placesOf(stage, begun) {
  const run = known.runs[view.run], points = run?.curves?.[stage]?.loss, of = run && AXES[view.x].of(run, stage);
  if (!points?.length || !of) return [];
  const steps = points.map((point) => point[0]);
  return begun.map((step) => of(points[Math.min(firstFrom(steps, step), steps.length - 1)]));
}

function showCharts() {
  const stage = shownStage(), names = shownCharts(stage);
  showControls(stage);
  for (const [name, chart] of charts) {
    if (names.includes(name)) continue;
    chart.remove();
    charts.delete(name);
  }
  names.forEach((name, i) => {
    if (!charts.has(name)) charts.set(name, new Chart(name, zoom));
    const { element } = charts.get(name);
    element.classList.toggle("low", i > 0);
    if (place("charts").children[i] !== element) place("charts").insertBefore(element, place("charts").children[i] ?? null);
  });
  const run = known.runs[view.run], borders = run?.borders?.[stage] ?? [];
  const attempts = placesOf(stage, (run?.attempts?.[stage] ?? []).slice(1)), begun = placesOf(stage, borders.map(([step]) => step));
  const shown = { axis: AXES[view.x], range: view.zoom, attempts, borders: begun.map((x, n) => [x, borders[n][1]]), log: view.log };
  for (const name of names) charts.get(name).show(seriesOf(name, stage), shown);
}

// ---------------------------------------------------------------- the controls

function showControls(stage) {
  const stages = stagesWithCurves(), names = chartNames(known.runs, stage);
  const has = (name) => known.runs.some((run) => AXES[name].of(run, stage));
  if (view.x !== "step" && stage && !has(view.x)) Object.assign(view, { x: "step", zoom: null });
  const state = JSON.stringify([stages, stage, names, view, Object.keys(AXES).map(has)]);
  if (showControls.state === state) return;
  showControls.state = state;
  const focused = document.activeElement?.id;
  const button = (one) => make("button", { type: "button", id: `stage-${one}`, "data-stage": one, "aria-pressed": String(one === stage) }, STAGES[one]);
  place("stages").replaceChildren(...(stages.length > 1 ? stages.map(button) : []));
  for (const option of place("axis").options) option.disabled = !has(option.value);
  place("axis").value = view.x;
  place("smoothing").value = view.smoothing;
  place("log").checked = view.log;
  place("whole").disabled = !view.zoom;
  const box = (name) => {
    const input = make("input", { type: "checkbox", id: `choose-${name}`, value: name });
    input.checked = view.charts.includes(name);
    return make("label", {}, input, titleOf(name).replace(/,.*/, ""));
  };
  place("metrics").replaceChildren(...names.map(box));
  if (focused?.match(/^(choose|stage)-/)) place(focused)?.focus();
}

// Change what is shown, keep it in the address, and ask for the curves of it.
function choose(changes) {
  const before = JSON.stringify(wanted());
  Object.assign(view, changes);
  keepView();
  showCharts();
  if (!frozen && JSON.stringify(wanted()) !== before) poll();
}

function zoom(range) {
  // As exact as the address keeps it.
  if (range || view.zoom) choose({ zoom: range && range.map((end) => Number(end.toPrecision(9))) });
}

function zoomBy(factor) {
  const chart = [...charts.values()].find((one) => one.marks);
  if (chart) zoom(chart.zoomed(factor));
}

place("smoothing").addEventListener("input", () => choose({ smoothing: Number(place("smoothing").value) }));
place("log").addEventListener("change", () => choose({ log: place("log").checked }));
place("axis").addEventListener("change", () => choose({ x: place("axis").value, zoom: null }));
place("closer").addEventListener("click", () => zoomBy(0.5));
place("farther").addEventListener("click", () => zoomBy(2));
place("whole").addEventListener("click", () => zoom(null));
place("stages").addEventListener("click", (event) => {
  if (event.target.dataset.stage) choose({ stage: event.target.dataset.stage, zoom: null });
});
place("metrics").addEventListener("change", (event) => {
  const { value, checked } = event.target;
  choose({ charts: checked ? [...view.charts, value] : view.charts.filter((name) => name !== value) });
});
// On paper nobody can choose a stage: all that are known are printed.
addEventListener("beforeprint", () => {
  const stage = view.stage;
  const stages = stagesWithCurves().filter((one) => known.runs.some((run) => run.curves?.[one]));
  const copies = stages.map((one) => {
    view.stage = one;
    showCharts();
    const copy = place("charts").cloneNode(true);
    for (const named of [copy, ...copy.querySelectorAll("[id]")]) named.removeAttribute("id");
    return [make("h3", {}, STAGES[one]), copy];
  });
  view.stage = stage;
  showCharts();
  place("charts").hidden = copies.length > 1;
  place("other-stages").replaceChildren(...(copies.length > 1 ? copies.flat() : []));
});
addEventListener("afterprint", () => {
  place("charts").hidden = false;
  place("other-stages").replaceChildren();
});
