// What the page knows of the runs: frozen in this file, or told by the page's server.
"use strict";

const POLL = 5000; // milliseconds
// Of a file that is complete in itself: everything, and since when. Null on a page that has a server.
const frozen = JSON.parse(document.getElementById("frozen")?.textContent ?? "null");
const known = { runs: [], settings: null };

// The time, in Unix seconds, at which the page tells what is: in a file, when it was written.
const present = () => frozen?.frozen_at ?? Date.now() / 1000;

// Ask for everything; false if it is as before, null if the server needs a key. Throws if it can't be asked.
async function ask() {
  const key = sessionStorage.getItem("pion-key");
  const headers = { ...(key && { Authorization: `Bearer ${key}` }), ...(ask.tag && { "If-None-Match": ask.tag }) };
  const answer = await fetch("data", { headers, cache: "no-store" });
  if (answer.status === 401) return null;
  if (!answer.ok && answer.status !== 304) throw new Error(`the server answers with status ${answer.status}`);
  if (answer.ok) learn(await answer.json());
  ask.tag = answer.headers.get("ETag");
  // The server says how old each look is: its clock and this computer's may differ.
  answer.headers.get("Look-Ages").split(",").forEach((age, i) => (known.runs[i].looked_at = age && present() - Number(age)));
  return answer.ok;
}

// Take over everything, and keep in each run which of its parts have changed.
function learn({ runs, settings }) {
  known.settings = settings;
  known.runs = runs.map((run, i) => {
    const { changed: _, shown = true, looked_at, ...before } = known.runs[i] ?? {};
    // Of a run that another replaced, parts are gone.
    const changed = Object.keys({ ...before, ...run }).filter((part) => JSON.stringify(run[part]) !== JSON.stringify(before[part]));
    return { ...run, changed, shown, looked_at };
  });
}
