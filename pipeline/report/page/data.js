// What the page knows of the runs. Each answer of the server has only what is new.
"use strict";

const POLL = 5000; // milliseconds
const known = { runs: [], settings: {}, ahead: 0 };

// Return each run's parts that are new; null if the server needs a key. Throws if it can't be asked.
async function ask() {
  const since = known.runs.map((run) => run.cursor).join(",");
  const key = sessionStorage.getItem("pion-key");
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  const answer = await fetch(`data?since=${encodeURIComponent(since)}`, { headers, cache: "no-store" });
  if (answer.status === 401) return null;
  if (!answer.ok) throw new Error(`the server answers with status ${answer.status}`);
  const found = await answer.json();
  known.ahead = found.now - Date.now() / 1000;
  known.settings = found.settings;
  return found.runs.map((news, i) => learn(i, news));
}

// Take over what is new of run `i`, and return the names of the parts that changed.
function learn(i, news) {
  if (news.whole || !known.runs[i]) known.runs[i] = { parts: {}, curves: {}, shown: known.runs[i]?.shown ?? true };
  const run = known.runs[i];
  for (const curve of news.curves) {
    const name = `${curve.stage}/${curve.name}`;
    const points = (run.curves[name] || []).filter((point) => point[0] < curve.from);
    run.curves[name] = points.concat(curve.points);
  }
  Object.assign(run.parts, news.parts);
  for (const field of ["name", "url", "cursor", "looked_at", "trouble", "pause"]) run[field] = news[field];
  return { parts: Object.keys(news.parts), curves: news.curves.length > 0 || news.whole };
}

// The server's time, in Unix seconds: the clock of this computer may differ.
const serverTime = () => Date.now() / 1000 + known.ahead;
