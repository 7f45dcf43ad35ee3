"use strict";
// The conversation that is open: how it is kept while it changes, left, opened, and deleted.

const TAB = "pion-tab"; // what is open in this tab, and the settings
const LEAST_PAUSE = 400; // milliseconds between two writes

const headers = new Map(); // of all kept conversations, by id
const others = new BroadcastChannel("pion"); // tells the other tabs what changed

/** Return an id that no other tab draws. crypto.randomUUID is only there at secure addresses. */
function newId() {
  return [...crypto.getRandomValues(new Uint32Array(4))].map((part) => part.toString(36)).join("-");
}

let pending = null; // the timer of the next write
let bodyChanged = false;
let pause = LEAST_PAUSE;

/** Keep the open conversation soon. `body`: more than the draft has changed. */
function keepSoon(body = true) {
  bodyChanged ||= body;
  pending ??= setTimeout(keepNow, pause);
}

/** Keep the open conversation. One without a word is not kept. */
async function keepNow() {
  clearTimeout(pending);
  pending = null;
  rememberTab();
  const header = headerNow();
  const { id } = state;
  if (!id || (!state.root.turns.length && !header.draft)) {
    if (headers.delete(id)) await store.remove([id]);
    return showHistory();
  }
  const began = performance.now();
  const body = bodyChanged || !headers.has(id) ? toJson() : undefined;
  bodyChanged = false;
  headers.set(id, header);
  const written = store.put(header, body);
  // Writing a very long conversation must not slow down its answer.
  pause = Math.max(LEAST_PAUSE, 20 * (performance.now() - began));
  await written;
  if (!state.busy) others.postMessage({ kept: id });
  showHistory();
}

/** Return what the list needs to know about the open conversation. */
function headerNow() {
  const turns = allTurns(state.root).map(({ turn }) => turn);
  const texts = turns.flatMap(({ question, versions }) => [
    question,
    ...versions.flatMap(({ answers }) => answers.map((answer) => (answer.given ?? "") + answer.text)),
  ]);
  const draft = $("input").value;
  const begin = (turns[0]?.question || texts.find(Boolean) || draft).slice(0, 200).trim();
  const title = state.name || begin.replace(/\s+/g, " ").slice(0, 80) || "Untitled";
  return { id: state.id, title, changed: Date.now(), text: texts.join("\n").toLowerCase(), draft };
}

/** Remember what this tab shows, for a reload. */
function rememberTab() {
  const { id, chosen: settings, seed, system, mode, modeChosen } = state;
  tab.set(TAB, JSON.stringify({ id, settings, seed, system, mode, modeChosen, models: asked() }));
}

/** Show again what was open in this tab before a reload. */
async function resume() {
  let before = null;
  try {
    before = JSON.parse(tab.get(TAB));
  } catch {
    // Another program's words: begin anew.
  }
  if (headers.has(before?.id) && (await openConversation(before.id))) return;
  const known = (Array.isArray(before?.models) ? before.models : []).filter(modelOf);
  state.modeChosen = before?.modeChosen === true;
  if (state.modeChosen) setMode(before.mode === "text" ? "text" : "chat");
  state.seed = seedOf(before?.seed);
  state.system = textOf(before?.system);
  takeModels(known, before?.settings, "This tab");
  state.id = newId();
  followModel();
  showHistory();
}

/** Leave the open conversation: stop its answer and keep what has come. */
async function leave() {
  state.busy?.abort();
  await state.writing;
  if (pending) await keepNow();
  leaveChanges();
}

/** Show a conversation. `what` names it where its models are not served here. */
function show(id, { root, name, seed, system, mode, models, settings }, what, draft = "") {
  Object.assign(state, { id, root, name, seed, system, modeChosen: true });
  $("input").value = draft;
  showBanner("");
  showTurns();
  takeModels(models, settings, what);
  setMode(mode ?? state.turns.at(-1)?.mode ?? "chat");
  scroller().scrollTop = scroller().scrollHeight;
  showHistory();
}

/** Open a kept conversation; return whether it could be read. One that can't be is left alone. */
async function openConversation(id) {
  await leave();
  const header = headers.get(id);
  try {
    const found = fromJson(await store.body(id));
    show(id, found, `“${header.title}”`, textOf(header.draft));
  } catch (error) {
    showBanner(`“${header?.title}” can't be shown: ${error.message}. It is kept as it is.`);
    return false;
  }
  rememberTab();
  return true;
}

/** Begin a conversation with the same models and settings. */
async function startNew() {
  await leave();
  Object.assign(state, { id: newId(), root: newVersion([]), name: "", modeChosen: false });
  $("input").value = "";
  showBanner("");
  showTurns();
  followModel();
  rememberTab();
  showHistory();
  if (isDrawer() && !$("history").hidden) toggleHistory();
  $("input").focus();
}

/** Call a conversation something else; with no name, it is called after its first question. */
async function rename(id, name) {
  const before = headers.get(id);
  if (id === state.id) {
    state.name = name;
    bodyChanged = true;
    return keepNow();
  }
  const body = await store.body(id);
  if (!body) return;
  const first = textOf(body.turns?.[0]?.question).slice(0, 80).trim();
  await putBack([[{ ...before, title: name || first || "Untitled" }, { ...body, name }]]);
}

/** Delete conversations, and offer to bring them back. */
async function deleteConversations(ids, words) {
  if (ids.includes(state.id)) await leave();
  const kept = await Promise.all(ids.map(async (id) => [headers.get(id), await store.body(id)]));
  const wasOpen = ids.includes(state.id) && state.id;
  for (const id of ids) headers.delete(id);
  if (wasOpen) await startNew();
  await store.remove(ids);
  others.postMessage({ gone: ids });
  showHistory();
  const takeBack = async () => {
    await putBack(kept);
    if (wasOpen) await openConversation(wasOpen);
  };
  offerUndo(words, takeBack, false);
}

/** Write conversations as they were. */
async function putBack(kept) {
  for (const [header, body] of kept) {
    headers.set(header.id, header);
    await store.put(header, body);
    others.postMessage({ kept: header.id });
  }
  showHistory();
}

/** Follow what another tab did. Its last write of a conversation wins. */
async function followOtherTab({ data: { kept, gone } }) {
  headers.clear();
  for (const header of await store.headers()) headers.set(header.id, header);
  showHistory();
  if (gone?.includes(state.id) && !state.busy) {
    state.id = null; // or else it would be kept again
    await startNew();
  } else if (kept === state.id && !state.busy && !document.querySelector(".editing")) {
    const typed = $("input").value;
    await openConversation(kept);
    $("input").value = typed;
  }
}

others.addEventListener("message", followOtherTab);
for (const moment of ["pagehide", "visibilitychange"]) {
  addEventListener(moment, () => pending && keepNow());
}
