// The sections below the curves. Each function shows one part of a run.
"use strict";

const place = (id) => document.getElementById(id);

function fill(id, title, ...content) {
  const section = place(id);
  section.hidden = !content.length;
  section.replaceChildren(make("h2", {}, title), ...content);
}

function showTiles(run) {
  const { summary, cost } = run.parts;
  const tile = (name, value, note, extra) =>
    make("div", {}, make("dt", {}, name), make("dd", {}, value, note ? make("small", {}, note) : null, extra));
  const tiles = [
    tile("State", [make("i", { class: `dot ${summary.state}` }), STATES[summary.state]], summary.owner || "nobody owns the run"),
  ];
  if (summary.step !== null && summary.step !== undefined) {
    const share = summary.steps ? Math.min(1, summary.step / summary.steps) : 0;
    const done = make("div", {});
    done.style.width = `${100 * share}%`;
    tiles.push(
      tile(`${STAGES[summary.stage]} step`, whole(summary.step), summary.steps ? `of ${whole(summary.steps)}` : "", make("div", { class: "progress" }, done)),
    );
  }
  if (summary.seconds_left !== null) tiles.push(tile("Stage is done in", duration(summary.seconds_left)));
  if (summary.deadline) tiles.push(tile("Deadline", moment(summary.deadline.at), untilDeadline(summary.deadline), lastSeen(summary.deadline.saw)));
  if (summary.loss !== null && summary.loss !== undefined)
    tiles.push(tile("Loss", fixed(summary.loss, 3), summary.held_out_loss === null ? "" : `held-out ${fixed(summary.held_out_loss, 3)}`));
  if (summary.tokens_per_second) tiles.push(tile("Tokens per second", whole(summary.tokens_per_second)));
  const seconds = Object.values(cost.seconds).reduce((a, b) => a + b, 0);
  const useful = cost.goodput === null ? "" : `${Math.round(100 * cost.goodput)} % useful`;
  if (cost.dollars !== null)
    tiles.push(tile("Cost", dollars(cost.dollars), `${duration(seconds)}${cost.unpriced_hours ? `, ${duration(3600 * cost.unpriced_hours)} without a price` : ""}`));
  else if (seconds) tiles.push(tile("Time", duration(seconds), useful));
  place("tiles").replaceChildren(...tiles);
  place("chosen").hidden = known.runs.length < 2;
  place("chosen").textContent = run.name;
  const notes = [...(summary.stop ? [`asked to stop: ${summary.stop}`] : []), ...summary.notes];
  place("notes").hidden = !notes.length;
  place("notes").replaceChildren(...notes.map((note) => make("li", {}, note)));
}

// Say whether a run was done in time, or how much time is left.
function untilDeadline({ at, finished_at: end }) {
  const left = at - (end ?? Date.now() / 1000);
  if (end === null) return left < 0 ? `${duration(-left)} ago` : `in ${duration(left)}`;
  return left < 0 ? `missed by ${duration(-left)}` : `met, ${duration(left)} early`;
}

// Say what the watcher of a rental saw last, and how long ago.
function lastSeen(saw) {
  if (!saw) return null;
  const slack = saw.slack > 0 ? `${duration(saw.slack)} of slack` : "no slack";
  const left = `; ${duration(saw.work_left)} of work left, ${slack}, ${duration(saw.reserve)} kept in reserve`;
  return make("small", {}, `${saw.words}${saw.work_left > 0 ? left : ""} (${duration(Date.now() / 1000 - saw.at)} ago)`);
}

function showCost(run) {
  const { seconds, dollars_by_cause: money, goodput, useful } = run.parts.cost;
  const total = Object.values(seconds).reduce((a, b) => a + b, 0);
  if (!total) return fill("cost", "");
  const causes = Object.keys(CAUSES).filter((cause) => seconds[cause] > 0);
  const share = (cause) => `${((100 * seconds[cause]) / total).toFixed(1)} %`;
  const bar = make("div", { class: "time", role: "img", "aria-label": causes.map((cause) => `${cause} ${share(cause)}`).join(", ") });
  for (const cause of causes) {
    const piece = make("div", { class: cause, title: `${cause} ${share(cause)}` });
    piece.style.flexGrow = seconds[cause] / total;
    bar.append(piece);
  }
  const items = causes.map((cause) =>
    make(
      "li",
      {},
      make("i", { class: `swatch ${cause}` }),
      make("span", {}, cause, make("span", { class: "faint" }, ` – ${CAUSES[cause]}`)),
      make("span", {}, `${duration(seconds[cause])} · ${share(cause)}${money[cause] ? ` · ${dollars(money[cause])}` : ""}`),
    ),
  );
  const lost = causes.filter((cause) => !useful.includes(cause)).length;
  const words = `${(100 * goodput).toFixed(1)} % of the time was useful${lost ? "" : ": nothing was lost"}.`;
  fill("cost", "Where the time went", make("p", { class: "faint small" }, words), bar, make("ul", { class: "causes" }, items));
}

function showMachines(run) {
  const machines = run.parts.machines;
  if (!machines.length) return fill("machines", "");
  const first = Math.min(...machines.map((machine) => machine.begin));
  const last = Math.max(...machines.map((machine) => machine.end), first + 1);
  const life = (machine) => {
    const bar = make("div", {});
    bar.style.left = `${(100 * (machine.begin - first)) / (last - first)}%`;
    bar.style.width = `${(100 * (machine.end - machine.begin)) / (last - first)}%`;
    return make("div", { class: "life", role: "img", "aria-label": `${moment(machine.begin)} to ${moment(machine.end)}` }, bar);
  };
  const columns = [
    { name: "Machine" },
    { name: "Life" },
    { name: "From" },
    { name: "Time", number: true },
    { name: "First step after", number: true },
    { name: "Per hour", number: true },
    { name: "Cost", number: true },
  ];
  const rows = machines.map((machine) => [
    machine.what,
    life(machine),
    moment(machine.begin),
    duration(3600 * machine.hours),
    machine.to_first_step === null ? "–" : duration(machine.to_first_step),
    dollars(machine.price),
    dollars(machine.dollars),
  ]);
  fill("machines", "Machines", table(columns, rows));
}

const FEW = 4; // samples and checkpoints before the button

function showSamples(run) {
  const texts = run.parts.samples.map((sample) =>
    make(
      "div",
      { class: "sample" },
      make("div", { class: "faint small" }, `${STAGES[sample.stage]} step ${whole(sample.step)}`),
      make("p", {}, make("b", {}, sample.prompt), sample.stage === "sft" ? "\n" : "", sample.text),
    ),
  );
  fill("samples", "Samples", ...few(texts, (shown) => shown));
}

function showCheckpoints(run) {
  const columns = [
    { name: "Checkpoint" },
    { name: "Step", number: true },
    { name: "Held-out loss", number: true },
    { name: "Size", number: true },
    { name: "Saved", number: true },
  ];
  const rows = run.parts.checkpoints.map((entry) => [
    `${STAGES[entry.stage] || entry.stage}${entry.final ? ", final" : ""}`,
    whole(entry.step),
    fixed(entry.held_out_loss, 4),
    size(entry.bytes),
    moment(entry.at),
  ]);
  fill("checkpoints", "Checkpoints", ...few(rows, (shown) => [table(columns, shown)]));
}

// Return the elements of the first items, with a button that shows all. `of` makes the elements.
function few(items, of) {
  if (!items.length) return [];
  const content = make("div", {}, of(items.slice(0, FEW)));
  if (items.length <= FEW) return [content];
  const more = make("button", { class: "more", type: "button" }, `Show all ${items.length}`);
  more.addEventListener("click", () => {
    content.replaceChildren(...of(items));
    more.remove();
  });
  return [content, more];
}

function showEvents(run) {
  const items = run.parts.events.map((event) =>
    make("li", {}, make("span", { class: "faint" }, moment(event.at)), make("span", {}, event.event), make("span", { class: "faint" }, event.text)),
  );
  const list = make("ol", { class: "log", tabindex: "0", "aria-label": "Events, the newest first" }, items);
  fill("events", "Events", ...(items.length ? [list] : []));
}

// Show in which settings several runs differ.
function showSettings(settings, runs) {
  if (runs.length < 2) return fill("settings", "");
  if (!settings) return fill("settings", "Settings that differ", make("p", { class: "faint" }, "The runs' jobs are not recorded, or this Pion can't read them."));
  const shown = (value) => {
    if (value === null || value === undefined) return "–";
    if (typeof value === "number") return String(Number(value.toPrecision(6)));
    return typeof value === "string" ? value : JSON.stringify(value);
  };
  const columns = [{ name: "Setting" }, ...runs.map((run) => ({ name: run.name, number: true }))];
  const rows = Object.entries(settings).map(([path, values]) => [path, ...values.map(shown)]);
  const none = make("p", { class: "faint" }, "The settings of these runs do not differ.");
  fill("settings", "Settings that differ", rows.length ? table(columns, rows) : none);
}
