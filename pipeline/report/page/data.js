// What the page knows of the runs: frozen in this file, or told by the page's server.
"use strict";

const POLL = 5000; // milliseconds
// Of a file that is complete in itself: everything, and since when. Null on a page that has a server.
const frozen = JSON.parse(document.getElementById("frozen")?.textContent ?? "null");
const known = { runs: [], settings: null };

// The time, in Unix seconds, at which the page tells what is: in a file, when it was written.
const present = () => frozen?.frozen_at ?? Date.now() / 1000;

// Ask for everything, with the curves of `wanted`: their stage and names, and of each run the steps, or "" for all.
// Returns false if it is as before, or asked again meanwhile; null if the server needs a key. Throws if it can't be asked.
async function ask(wanted) {
  const mine = (ask.number = (ask.number ?? 0) + 1);
  const key = sessionStorage.getItem("pion-key");
  const asked = wanted.stage ? `?${new URLSearchParams({ stage: wanted.stage, names: wanted.names, ...(wanted.steps && { steps: wanted.steps }) })}` : "";
  const headers = { ...(key && { Authorization: `Bearer ${key}` }), ...(ask.tag && { "If-None-Match": ask.tag }) };
  const answer = await fetch(`data${asked}`, { headers, cache: "no-store" });
  const told = answer.ok ? await answer.json() : null;
  if (mine !== ask.number) return false; // something else was asked meanwhile
  if (answer.status === 401) return null;
  if (!answer.ok && answer.status !== 304) throw new Error(`the server answers with status ${answer.status}`);
  if (answer.ok) learn(told, wanted.steps ? wanted : null);
  ask.tag = answer.headers.get("ETag");
  // The server says how old each look is: its clock and this computer's may differ.
  answer.headers.get("Look-Ages").split(",").forEach((age, i) => (known.runs[i].looked_at = age && present() - Number(age)));
  return answer.ok;
}

// Take over everything, and keep in each run which of its parts have changed. Whole curves stay while a part of
// them is looked at, which is the run's `detail`: its curves, and what was asked for.
function learn({ runs, settings }, asked = null) {
  known.settings = settings;
  known.runs = runs.map((run, i) => {
    const { changed: _, looked_at, detail, ...before } = known.runs[i] ?? {};
    const now = { ...run, curves: asked && run.summary ? before.curves : run.curves };
    // Of a run that another replaced, parts are gone.
    const changed = Object.keys({ ...before, ...now }).filter((part) => JSON.stringify(now[part]) !== JSON.stringify(before[part]));
    const part = asked && { asked, curves: run.curves };
    if (JSON.stringify(part) !== JSON.stringify(detail ?? null)) changed.push("curves");
    return { ...now, changed, looked_at, detail: part };
  });
}
