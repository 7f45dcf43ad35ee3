// The page: show what the file has, or ask every few seconds and show what has changed.
"use strict";

let selected = 0; // the run whose details are shown
let stage = null; // null: the newest stage that has curves; of a finished run, the first
let trouble = ""; // why the page's own server does not answer

const charts = {
  loss: new Chart(place("loss"), "Loss in nats per token, and on held-out text (dashed), by step", (value) => value.toFixed(4)),
  tokens_per_second: new Chart(place("tokens_per_second"), "Tokens per second, by step", whole),
  lr: new Chart(place("lr"), "Learning rate, by step", (value) => value.toExponential(3)),
};

const curve = (run, name) => run.curves?.[stage]?.[name] ?? [];

const stagesWithCurves = () => Object.keys(STAGES).filter((one) => known.runs.some((run) => run.curves?.[one]?.loss));

function showCurves() {
  const stages = stagesWithCurves();
  const done = known.runs.every((run) => run.summary?.state === "done");
  const shown = stages.includes(place("stages").dataset.chosen) ? place("stages").dataset.chosen : stages.at(done ? 0 : -1) ?? null;
  if (shown !== stage || place("stages").childElementCount !== stages.length) {
    stage = shown;
    const button = (one) => make("button", { type: "button", "data-stage": one, "aria-pressed": String(one === stage) }, STAGES[one]);
    place("stages").replaceChildren(...(stages.length > 1 ? stages.map(button) : []));
  }
  const amount = Number(place("smoothing").value), log = place("log").checked;
  const runs = known.runs.map((run, i) => ({ run, i })).filter(({ run }) => run.shown && run.summary);
  const several = known.runs.length > 1;
  const named = (run, what) => (several ? `${run.name}${what === "held-out" ? ", held-out" : ""}` : what);
  const loss = [];
  for (const { run, i } of runs) {
    const points = curve(run, "loss");
    if (amount) loss.push({ label: "", points, color: i, kind: "raw" });
    loss.push({ label: named(run, "training"), points: smooth(points, amount), raw: points, color: i, kind: "line" });
    loss.push({ label: named(run, "held-out"), points: curve(run, "held_out_loss"), color: several ? i : 1, kind: "held" });
  }
  const attempts = known.runs[selected]?.attempts?.[stage] ?? [];
  charts.loss.show(loss, attempts, log);
  for (const name of ["tokens_per_second", "lr"]) {
    const part = name === "lr" ? 0 : amount;
    const lines = runs.map(({ run, i }) => ({ label: named(run, name === "lr" ? "learning rate" : "tokens/s"), points: smooth(curve(run, name), part), raw: curve(run, name), color: i, kind: "line" }));
    charts[name].show(lines, attempts, log);
  }
}

// Show the runs, each with its color, to choose one and to hide its curves.
function showRuns() {
  place("runs").hidden = known.runs.length < 2;
  if (known.runs.length < 2) return;
  const focused = document.activeElement?.id;
  const columns = [
    { name: "Run" },
    { name: "State" },
    { name: "Step", number: true },
    { name: "Loss", number: true },
    { name: "Held-out", number: true },
    { name: "Tokens/s", number: true },
    { name: "Cost", number: true },
    { name: "Curves" },
  ];
  const rows = known.runs.map((run, i) => {
    const { summary, cost } = run;
    const name = make("button", { type: "button", class: "run-name", id: `run-${i}`, "aria-pressed": String(i === selected), title: run.url }, run.name);
    name.addEventListener("click", () => choose(i));
    const box = make("input", { type: "checkbox", id: `curves-${i}`, "aria-label": `show the curves of ${run.name}` });
    box.checked = run.shown;
    box.addEventListener("change", () => {
      run.shown = box.checked;
      showCurves();
    });
    if (!summary) return [name, run.trouble || "reading …", "", "", "", "", "", ""];
    return [
      make("span", {}, make("i", { class: `swatch b${i}` }), " ", name),
      make("span", {}, make("i", { class: `dot ${summary.state}` }), STATES[summary.state]),
      summary.step === null ? "–" : `${whole(summary.step)}${summary.steps ? ` of ${whole(summary.steps)}` : ""}`,
      fixed(summary.loss, 3),
      fixed(summary.held_out_loss, 3),
      summary.tokens_per_second ? whole(summary.tokens_per_second) : "–",
      dollars(cost.dollars),
      make("label", {}, box),
    ];
  });
  place("runs").replaceChildren(table(columns, rows));
  if (focused) place(focused)?.focus();
}

function choose(i) {
  selected = i;
  showRuns();
  showDetails(Object.keys(PARTS));
  showCurves();
}

const PARTS = {
  summary: showTiles,
  figures: showTiles,
  measured: (run) => showTexts("measured", run.measured),
  samples: showSamples,
  cost: showCost,
  machines: showMachines,
  checkpoints: showCheckpoints,
  record: (run) => showTexts("record", run.record),
  events: showEvents,
};

function showDetails(names) {
  const run = known.runs[selected];
  if (run?.summary) for (const show of new Set(names.map((name) => PARTS[name]))) show?.(run);
}

// Say how new everything is, and what can't be read at the moment.
function showFreshness() {
  const problems = known.runs.filter((one) => one.trouble).map((one) => one.trouble);
  const said = trouble ? [trouble] : [...new Set(problems)];
  place("trouble").hidden = !said.length;
  const again = place("key-form").hidden ? " The page tries again." : "";
  const words = said.map((problem) => problem + again).join(" ");
  if (place("trouble").textContent !== words) place("trouble").textContent = words;
  const at = known.runs[selected]?.looked_at;
  const age = present() - at;
  let fresh = at ? `as of ${age < 2 ? "now" : `${duration(age)} ago`}` : "reading the store …";
  if (frozen) fresh = `as of ${moment(frozen.frozen_at)}`;
  if (place("fresh").textContent !== fresh) place("fresh").textContent = fresh;
}

async function poll() {
  clearTimeout(poll.timer);
  let wait = POLL;
  try {
    const news = await ask();
    trouble = "";
    place("key-form").hidden = news !== null;
    if (news) show();
    else if (news === null && sessionStorage.getItem("pion-key")) trouble = "This is not the key of this server.";
    if (!known.runs.some((run) => run.looked_at || run.trouble)) wait = 500;
  } catch {
    trouble = "The server of this page does not answer. Perhaps it was stopped.";
  }
  showFreshness();
  if (document.visibilityState === "visible") poll.timer = setTimeout(poll, wait);
}

function show() {
  const names = known.runs.map((run) => run.name).join(", ");
  document.title = `${names} · Pion`;
  place("title").textContent = names;
  place("url").textContent = known.runs.length === 1 ? known.runs[0].url : "";
  place("run").hidden = !known.runs.some((run) => run.summary);
  if (known.runs.some((run) => run.changed.length)) showRuns();
  showDetails(known.runs[selected].changed);
  if (known.runs.some((run) => run.changed.includes("curves") || run.changed.includes("attempts"))) showCurves();
  const settings = JSON.stringify(known.settings);
  if (settings !== show.settings) showSettings(known.settings, known.runs);
  show.settings = settings;
}

place("smoothing").addEventListener("input", showCurves);
place("log").addEventListener("change", showCurves);
place("stages").addEventListener("click", (event) => {
  if (!event.target.dataset.stage) return;
  place("stages").dataset.chosen = event.target.dataset.stage;
  for (const button of place("stages").children) button.setAttribute("aria-pressed", String(button === event.target));
  showCurves();
});
place("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("pion-key", place("key").value);
  poll();
});
// On paper nobody can choose a stage: all are printed.
addEventListener("beforeprint", () => {
  const shown = stage;
  const copies = stagesWithCurves().map((one) => {
    place("stages").dataset.chosen = one;
    showCurves();
    const copy = place("charts").cloneNode(true);
    for (const named of [copy, ...copy.querySelectorAll("[id]")]) named.removeAttribute("id");
    return [make("h3", {}, STAGES[one]), copy];
  });
  place("stages").dataset.chosen = shown ?? "";
  showCurves();
  place("charts").hidden = copies.length > 1;
  place("other-stages").replaceChildren(...(copies.length > 1 ? copies.flat() : []));
});
addEventListener("afterprint", () => {
  place("charts").hidden = false;
  place("other-stages").replaceChildren();
});
document.querySelector("main").hidden = false;
if (frozen) {
  learn(frozen);
  show();
  showFreshness();
} else {
  document.addEventListener("visibilitychange", () => {
    showFreshness();
    if (document.visibilityState === "visible") poll();
  });
  setInterval(showFreshness, 1000);
  poll();
}
