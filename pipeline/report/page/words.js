// Numbers, times and texts for people, and elements that hold them as text only.
"use strict";

// As `duration` of pipeline/console/formats.py.
function duration(seconds) {
  if (seconds > 0 && seconds < 0.05) return `${Math.max(1, 1000 * seconds).toFixed(0)} ms`;
  if (seconds < 10) return `${Math.max(0, seconds).toFixed(1)} s`;
  const s = Math.round(seconds);
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${String(s % 60).padStart(2, "0")} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${String(Math.floor((s % 3600) / 60)).padStart(2, "0")} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

function size(bytes) {
  for (const [unit, scale] of [["TB", 1e12], ["GB", 1e9], ["MB", 1e6], ["kB", 1e3]])
    if (bytes >= scale) return `${Number((bytes / scale).toPrecision(3))} ${unit}`;
  return `${bytes} B`;
}

const whole = (number) => Math.round(number).toLocaleString("en-US");
const dollars = (amount) => (amount === null || amount === undefined ? "–" : amount > 0 && amount < 0.01 ? "<$0.01" : `$${amount.toFixed(2)}`);
const fixed = (number, digits) =>
  number === null || number === undefined ? "–" : number.toFixed(digits);

// A number on an axis: 0.0003 → 3e-4, 15000 → 15k.
function short(number) {
  const size = Math.abs(number);
  if (number === 0) return "0";
  if (size < 1e-3) return number.toExponential(2).replace(/\.?0+e/, "e");
  if (size >= 1e9) return `${Number((number / 1e9).toPrecision(4))}B`;
  if (size >= 1e6) return `${Number((number / 1e6).toPrecision(4))}M`;
  if (size >= 1e4) return `${Number((number / 1e3).toPrecision(4))}k`;
  return String(Number(number.toPrecision(4)));
}

// A date and time as everywhere in Pion, so that a file says the same to everybody.
const moment = (at) => `${new Date(at * 1000).toISOString().slice(0, 19).replace("T", " ")} UTC`;

const STATES = {
  running: "Running",
  stopping: "Stopping",
  done: "Done",
  released: "Stopped",
  silent: "No sign of life",
  dead: "Its process is dead",
};
const STAGES = { __proto__: null, pretrain: "Pretraining", sft: "Fine-tuning", prefer: "Preference tuning", reinforce: "Reward tuning" };
// Make an element. Every child that is no element becomes text, never markup.
function make(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {}))
    if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value);
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

// Make a table of rows of [cell, …]. On a phone each cell shows its column's name.
function table(columns, rows) {
  const kind = (i) => (columns[i].number ? { class: "number" } : { dir: "auto" });
  const cells = (row) => row.map((cell, i) => make("td", { ...kind(i), "data-label": columns[i].name }, cell));
  return make(
    "table",
    {},
    make("thead", {}, make("tr", {}, columns.map((column, i) => make("th", { scope: "col", ...kind(i) }, column.name)))),
    make("tbody", {}, rows.map((row) => make("tr", {}, cells(row)))),
  );
}
