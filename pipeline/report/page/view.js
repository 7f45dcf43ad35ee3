// What a person has chosen to see. The address keeps it after its #, so that a link restores it.
"use strict";

const FIRST_VIEW = { stage: null, x: "step", charts: USUAL, smoothing: 60, log: false, zoom: null, hidden: [], run: 0 };
const view = { ...FIRST_VIEW };

// Each choice as it is in the address: how it is written, and how it is read. What can't be read is left out.
const number = (text) => (/^-?\d+(\.\d+)?(e[+-]?\d+)?$/i.test(text) ? Number(text) : null);
const IN_ADDRESS = {
  stage: { write: (value) => value ?? "", read: (text) => (STAGES[text] ? text : null) },
  x: { write: String, read: (text) => (Object.hasOwn(AXES, text) ? text : null) },
  charts: { write: (names) => names.join(","), read: (text) => [...new Set(text.split(",").filter((name) => /^\w{1,40}$/.test(name)))] },
  smoothing: { write: String, read: (text) => (number(text) === null ? null : Math.min(100, Math.max(0, number(text)))) },
  log: { write: (on) => (on ? "1" : ""), read: (text) => text === "1" },
  zoom: {
    write: (range) => range?.join(",") ?? "",
    read(text) {
      const range = text.split(",").map(number);
      return range.length === 2 && range.every(Number.isFinite) && range[0] < range[1] ? range : null;
    },
  },
  hidden: { write: (runs) => runs.join(","), read: (text) => [...new Set(text.split(",").map(number))].filter(Number.isInteger) },
  run: { write: String, read: (text) => (Number.isInteger(number(text)) && number(text) >= 0 ? number(text) : null) },
};

function keepView() {
  const query = new URLSearchParams();
  for (const [name, { write }] of Object.entries(IN_ADDRESS))
    if (write(view[name]) !== write(FIRST_VIEW[name])) query.set(name, write(view[name]));
  const address = `${location.pathname}${location.search}${query.size ? `#${query.toString().replaceAll("%2C", ",")}` : ""}`;
  history.replaceState(null, "", address);
}

// Take over what the address says.
function readView() {
  const query = new URLSearchParams(location.hash.slice(1));
  for (const [name, { read }] of Object.entries(IN_ADDRESS)) view[name] = (query.has(name) ? read(query.get(name)) : null) ?? FIRST_VIEW[name];
}
