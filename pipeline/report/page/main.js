// The page: show what the file has, or ask every few seconds and show what has changed.
"use strict";

let trouble = ""; // why the page's own server does not answer

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
    const name = make("button", { type: "button", class: "run-name", id: `run-${i}`, "aria-pressed": String(i === view.run), title: run.url }, run.name);
    name.addEventListener("click", () => showRun(i));
    const box = make("input", { type: "checkbox", id: `curves-${i}`, "aria-label": `show the curves of ${run.name}` });
    box.checked = !view.hidden.includes(i);
    box.addEventListener("change", () => {
      choose({ hidden: box.checked ? view.hidden.filter((one) => one !== i) : [...view.hidden, i] });
      showSamples();
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

function showRun(i) {
  choose({ run: i });
  showRuns();
  showDetails(Object.keys(PARTS));
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
  const run = known.runs[view.run];
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
  const at = known.runs[view.run]?.looked_at;
  const age = present() - at;
  let fresh = at ? `as of ${age < 2 ? "now" : `${duration(age)} ago`}` : "reading the store …";
  if (frozen) fresh = `as of ${moment(frozen.frozen_at)}`;
  if (place("fresh").textContent !== fresh) place("fresh").textContent = fresh;
}

// Ask for news, and again after a while; at once if something else is wanted by then.
async function poll() {
  clearTimeout(poll.timer);
  poll.number = (poll.number ?? 0) + 1;
  const mine = poll.number, asked = JSON.stringify(wanted());
  let wait = POLL;
  try {
    const news = await ask(JSON.parse(asked));
    trouble = "";
    place("key-form").hidden = news !== null;
    if (news) show();
    else if (news === null && sessionStorage.getItem("pion-key")) trouble = "This is not the key of this server.";
    if (!known.runs.some((run) => run.looked_at || run.trouble)) wait = 500;
    if (JSON.stringify(wanted()) !== asked) wait = 0;
  } catch {
    trouble = "The server of this page does not answer. Perhaps it was stopped.";
  }
  showFreshness();
  if (document.visibilityState === "visible" && mine === poll.number) poll.timer = setTimeout(poll, wait);
}

function show() {
  const names = known.runs.map((run) => run.name).join(", ");
  document.title = `${names} · Pion`;
  place("title").textContent = names;
  place("url").textContent = known.runs.length === 1 ? known.runs[0].url : "";
  place("run").hidden = !known.runs.some((run) => run.summary);
  if (!known.runs[view.run]) view.run = 0;
  const changed = new Set(known.runs.flatMap((run) => run.changed));
  if (changed.size) showRuns();
  showDetails(known.runs[view.run].changed);
  if (known.runs.length > 1 && changed.has("samples")) showSamples();
  if (["curves", "attempts", "borders", "metrics", "paid"].some((part) => changed.has(part))) showCharts();
  const settings = JSON.stringify(known.settings);
  if (settings !== show.settings) showSettings(known.settings, known.runs);
  show.settings = settings;
}

place("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("pion-key", place("key").value);
  poll();
});
addEventListener("hashchange", () => {
  readView();
  showRun(Math.min(view.run, known.runs.length - 1));
});
readView();
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
