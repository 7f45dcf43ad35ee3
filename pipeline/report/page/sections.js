// The sections below the curves. Each function shows one part of a run.
"use strict";

const place = (id) => document.getElementById(id);

function fill(id, title, ...content) {
  const section = place(id);
  section.hidden = !content.length;
  section.replaceChildren(make("h2", {}, title), ...content);
}

// Show sections of text: what was measured, or the record of the run.
function showTexts(id, sections) {
  const shown = (blocks) => (blocks[0].heading ? few(blocks.slice(-FEW), blocks, (some) => some.map(block)) : blocks.map(block));
  place(id).replaceChildren(...sections.map(({ title, blocks }) => make("section", {}, make("h2", {}, title), shown(blocks))));
}

// Make an element of a block, which has one of text, rows, bars, facts and entries.
function block({ text, faint, header, rows, numbers_from, bars, heading, facts, entries }) {
  if (text) return make("p", { class: faint ? "faint small" : null, dir: "auto" }, text);
  if (rows) return table(header.map((name, i) => ({ name, number: i >= numbers_from })), rows);
  if (bars) {
    const longest = Math.max(...bars.map(([, , length]) => length)) || 1;
    return make("ul", { class: "bars" }, bars.map(([name, value, length]) => make("li", {}, make("span", { dir: "auto" }, name), make("span", {}, value), share(length / longest))));
  }
  if (facts) {
    const list = make("dl", { class: "facts" }, facts.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", { dir: "auto" }, value))));
    return heading ? make("div", { class: "card" }, make("h3", {}, heading), list) : list;
  }
  const dated = ([when, lines]) => make("li", {}, make("span", { class: "faint" }, when), lines.map((line) => make("div", { dir: "auto" }, line)));
  return make("div", {}, few(entries.slice(-FEW), entries, (some) => [make("ul", { class: "dated" }, some.map(dated))]));
}

// A bar that is filled by that share.
function share(part) {
  const done = make("div", {});
  done.style.width = `${100 * part}%`;
  return make("div", { class: "progress" }, done);
}

function showTiles(run) {
  const { summary } = run;
  const tile = (name, value, note, extra) =>
    make("div", {}, make("dt", {}, name), make("dd", {}, value, note ? make("small", { dir: "auto" }, note) : null, extra));
  const tiles = [
    tile("State", [make("i", { class: `dot ${summary.state}` }), STATES[summary.state]], summary.owner || "nobody owns the run"),
  ];
  if (summary.step !== null) {
    const part = summary.steps ? Math.min(1, summary.step / summary.steps) : 0;
    tiles.push(tile(`${STAGES[summary.stage]} step`, whole(summary.step), summary.steps ? `of ${whole(summary.steps)}` : "", share(part)));
  }
  if (summary.seconds_left !== null) tiles.push(tile("Stage is done in", duration(summary.seconds_left)));
  if (summary.deadline) tiles.push(tile("Deadline", moment(summary.deadline.at), summary.deadline.ended ?? untilDeadline(summary.deadline.at), lastSeen(summary.deadline.saw)));
  if (summary.loss !== null) {
    const [name, sign] = summary.stage === "reinforce" ? ["Reward", -1] : ["Loss", 1];
    tiles.push(tile(name, fixed(sign * summary.loss, 3), summary.held_out_loss === null ? "" : `held-out ${fixed(sign * summary.held_out_loss, 3)}`));
  }
  if (summary.tokens_per_second) tiles.push(tile("Tokens per second", whole(summary.tokens_per_second)));
  place("tiles").replaceChildren(...tiles, ...run.figures.map(([name, value]) => tile(name, value)));
  place("chosen").hidden = known.runs.length < 2;
  place("chosen").textContent = run.name;
  place("notes").hidden = !summary.notes.length;
  place("notes").replaceChildren(...summary.notes.map((note) => make("li", { dir: "auto" }, note)));
}

const untilDeadline = (at) => (at < present() ? `${duration(present() - at)} ago` : `in ${duration(at - present())}`);

// Say what the watcher of a rental saw last, and how long ago.
function lastSeen(saw) {
  if (!saw) return null;
  const slack = saw.slack > 0 ? `${duration(saw.slack)} of slack` : "no slack";
  const left = `; ${duration(saw.work_left)} of work left, ${slack}, ${duration(saw.reserve)} kept in reserve`;
  return make("small", {}, `${saw.words}${saw.work_left > 0 ? left : ""} (${duration(present() - saw.at)} ago)`);
}

function showCost(run) {
  const { words, causes } = run.cost;
  const total = causes.reduce((sum, { seconds }) => sum + seconds, 0);
  if (!total) return fill("cost", "");
  const percent = (seconds) => `${((100 * seconds) / total).toFixed(1)} %`;
  const said = causes.map(({ cause, seconds }) => `${cause} ${percent(seconds)}`);
  const pieces = causes.map(({ cause, seconds }, i) => {
    const piece = make("div", { class: cause, title: said[i] });
    piece.style.flexGrow = seconds / total;
    return piece;
  });
  const items = causes.map(({ cause, means, seconds, dollars: money }) =>
    make(
      "li",
      {},
      make("i", { class: `swatch ${cause}` }),
      make("span", {}, cause, make("span", { class: "faint" }, ` – ${means}`)),
      make("span", {}, `${duration(seconds)} · ${percent(seconds)}${money ? ` · ${dollars(money)}` : ""}`),
    ),
  );
  const bar = make("div", { class: "time", role: "img", "aria-label": said.join(", ") }, pieces);
  fill("cost", "Where the time went", make("p", { class: "faint small" }, words), bar, make("ul", { class: "causes" }, items));
}

function showMachines(run) {
  const { machines } = run;
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
    { name: "From", number: true },
    { name: "Time", number: true },
    { name: "Useful", number: true },
    { name: "First step after" },
    { name: "Per hour", number: true },
    { name: "Cost", number: true },
  ];
  const rows = machines.map((machine) => [
    machine.what,
    life(machine),
    moment(machine.begin),
    duration(3600 * machine.hours),
    `${(100 * machine.useful).toFixed(1)} %`,
    machine.to_first_step === null ? "–" : [duration(machine.to_first_step), make("small", { class: "faint" }, machine.phases)],
    dollars(machine.price),
    dollars(machine.dollars),
  ]);
  fill("machines", "Machines", table(columns, rows));
}

const FEW = 4; // checkpoints, attempts and what happened, before the button
const FEW_SETTINGS = 16;

function showCheckpoints(run) {
  const columns = [
    { name: "Checkpoint" },
    { name: "Step", number: true },
    { name: "Held-out loss", number: true },
    { name: "Size", number: true },
    { name: "Saved", number: true },
  ];
  const rows = run.checkpoints.map((entry) => [
    `${STAGES[entry.stage] || entry.stage}${entry.final ? ", final" : ""}`,
    whole(entry.step),
    entry.stage === "reinforce" && entry.held_out_loss !== null ? `reward ${fixed(-entry.held_out_loss, 4)}` : fixed(entry.held_out_loss, 4),
    size(entry.bytes),
    moment(entry.at),
  ]);
  fill("checkpoints", "Checkpoints", ...few(rows.slice(0, FEW), rows, (shown) => [table(columns, shown)]));
}

// Return the elements of the first items, with a button that shows all. `of` makes the elements.
function few(first, all, of) {
  if (!all.length) return [];
  const content = make("div", {}, of(first));
  if (first.length === all.length) return [content];
  const more = make("button", { class: "more", type: "button" }, `Show all ${all.length}`);
  more.addEventListener("click", () => {
    content.replaceChildren(...of(all));
    more.remove();
  });
  return [content, more];
}

function showEvents(run) {
  const items = run.events.map((event) =>
    make("li", {}, make("span", { class: "faint" }, moment(event.at)), make("span", {}, event.event), make("span", { class: "faint", dir: "auto" }, event.text)),
  );
  const list = make("ol", { class: "log", tabindex: "0", "aria-label": "Events, the newest first" }, items);
  fill("events", "Events", ...(items.length ? [list] : []));
}

// Show in which settings several runs differ: those that every run has come first.
function showSettings(settings, runs) {
  if (runs.length < 2) return fill("settings", "");
  if (!settings) return fill("settings", "Settings that differ", make("p", { class: "faint" }, "The runs' jobs are not recorded, or this Pion can't read them."));
  const shown = (value) => {
    if (value === null || value === undefined) return "–";
    if (typeof value === "number") return String(Number(value.toPrecision(6)));
    return typeof value === "string" ? value : JSON.stringify(value);
  };
  const columns = [{ name: "Setting" }, ...runs.map((run) => ({ name: run.name }))];
  const lacking = ([, ...values]) => values.includes("–");
  const rows = Object.entries(settings).map(([path, values]) => [path, ...values.map(shown)]);
  rows.sort((a, b) => lacking(a) - lacking(b));
  const none = make("p", { class: "faint" }, "The settings of these runs do not differ.");
  fill("settings", "Settings that differ", ...(rows.length ? few(rows.slice(0, FEW_SETTINGS), rows, (some) => [table(columns, some)]) : [none]));
}
