"use strict";
// Conversations as JSON, for files and for the store. The tree is written as a flat list, since
// JSON that is nested as deeply as a long conversation can't be read everywhere.

const FORMAT = "pion-conversation-2";
const FORMAT_1 = "pion-conversation-1"; // one branch only

/** Return the conversation as JSON that `fromJson` reads. */
function toJson() {
  const turns = allTurns(state.root).map(({ turn: { mode, question, at, versions }, after }) => {
    return { after, mode, question, at, versions: versions.map(({ answers, at: next }) => ({ answers, at: next })) };
  });
  const { name, system, settings, seed, root } = state;
  return { format: FORMAT, name, models: asked(), mode: state.mode, system, settings, seed, at: root.at, turns };
}

/** Return what a conversation says. Throws an Error that says what is wrong. */
function fromJson(json) {
  if (![FORMAT, FORMAT_1].includes(json?.format) || !Array.isArray(json.turns)) {
    throw new Error("this is no conversation that this page exported");
  }
  const rows = json.format === FORMAT ? json.turns : json.turns.map(rowOfFormat1);
  return {
    name: textOf(json.name),
    root: readTree(rows, json.at),
    mode: ["chat", "text"].find((mode) => mode === json.mode) ?? null,
    system: textOf(json.system),
    seed: seedOf(json.seed),
    settings: json.settings ?? {},
    models: listOf(json.models).map(textOf).filter(Boolean).slice(0, 2),
  };
}

const textOf = (value) => (typeof value === "string" ? value : "");
const listOf = (value) => (Array.isArray(value) ? value : []);
const seedOf = (value) => (Number.isSafeInteger(value) && value >= 0 ? value : null);
const placeIn = (list, at) => (Number.isInteger(at) && at >= 0 && at < list.length ? at : Math.max(0, list.length - 1));

function rowOfFormat1(turn, number) {
  return { ...turn, after: number ? [number - 1, 0] : null, versions: [{ answers: turn?.answers }] };
}

/** Return the root of a tree. Each row follows an earlier one. */
function readTree(rows, at) {
  const root = newVersion([]);
  const turns = [];
  for (const row of rows) {
    const under = row?.after ? turns[row.after[0]]?.versions[row.after[1]] : root;
    if (!under) throw new Error("its turns do not fit together");
    const turn = addTurn(under, row?.mode === "text" ? "text" : "chat", textOf(row?.question));
    for (const { answers } of readVersions(row)) addVersion(turn, listOf(answers).slice(0, 2).map(readAnswer));
    turns.push(turn);
  }
  root.at = placeIn(root.turns, at);
  turns.forEach((turn, number) => {
    turn.at = placeIn(turn.versions, rows[number]?.at);
    readVersions(rows[number]).forEach((read, which) => {
      turn.versions[which].at = placeIn(turn.versions[which].turns, read.at);
    });
  });
  return root;
}

function readVersions(row) {
  const found = listOf(row?.versions).map((version) => version ?? {});
  return found.length ? found : [{}];
}

/** Return an answer. One whose writing was interrupted, such as by a reload, counts as stopped. */
function readAnswer(answer) {
  const text = textOf(answer?.text);
  return {
    model: textOf(answer?.model),
    seed: seedOf(answer?.seed),
    given: typeof answer?.given === "string" ? answer.given : null,
    text,
    tokens: readTokens(answer?.tokens, text),
    finish: textOf(answer?.finish) || "stopped",
    error: textOf(answer?.error) || null,
    facts: textOf(answer?.facts),
  };
}

/** Return the tokens of an answer if they spell its text, and else one without probabilities. */
function readTokens(tokens, text) {
  const scored = (one) => typeof one?.text === "string" && (one.logprob === null || Number.isFinite(one.logprob));
  const right =
    Array.isArray(tokens) &&
    tokens.every((token) => scored(token) && Array.isArray(token.top) && token.top.every(scored)) &&
    tokens.map((token) => token.text).join("") === text;
  if (right) return tokens;
  return text ? [{ text, logprob: null, top: [] }] : [];
}
