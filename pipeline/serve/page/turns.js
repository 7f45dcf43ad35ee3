"use strict";
// The conversation: ask, edit and go from there, regenerate, continue, and compare.

/** Return the messages before the answer number `side` of a turn, with this turn's question. */
function messagesBefore(turn, side) {
  const messages = state.system ? [{ role: "system", content: state.system }] : [];
  for (const earlier of turnsBefore(turn).slice(turn.from ?? 0)) {
    if (earlier.mode !== "chat") continue;
    messages.push({ role: "user", content: earlier.question });
    const answer = earlier.answers[Math.min(side, earlier.answers.length - 1)];
    if (answer) messages.push({ role: "assistant", content: answer.text });
  }
  return [...messages, { role: "user", content: turn.question }];
}

/** Return the turns before a turn; before one that has not been asked, these are all. */
function turnsBefore(turn) {
  const place = state.turns.indexOf(turn);
  return place < 0 ? state.turns : state.turns.slice(0, place);
}

/** Ask a question, or continue a text: add a turn and let the models write. */
async function askQuestion(question) {
  const turn = { mode: state.mode, question, answers: [] };
  state.turns.push(turn);
  keepPlace(() => $("turns").append(turnElement(turn)));
  await answerTurn(turn);
}

/** Let all models write the answers to a turn. Later turns are dropped. */
async function answerTurn(turn) {
  dropAfter(turn);
  // Both sides of a comparison draw with the same seed.
  const seed = state.seed ?? crypto.getRandomValues(new Uint32Array(1))[0];
  turn.answers = asked().map((model) => newAnswer(model, seed));
  keepPlace(() => showTurn(turn));
  await write(turn, turn.answers.map((_, side) => side));
}

/** Let the models write some answers of a turn at the same time. */
async function write(turn, sides) {
  const abort = new AbortController();
  state.busy = abort;
  showBusy();
  turn.from = turn.mode === "chat" ? await firstTurnThatFits(turn) : 0;
  await Promise.all(sides.map((side) => writeAnswer(turn, side, abort.signal)));
  state.busy = null;
  showBusy();
  keepPlace(() => {
    for (const other of state.turns) other.answers.forEach((_, side) => showAnswer(other, side));
  });
  const failed = turn.answers.find((answer) => answer.error);
  say(failed ? failed.error : "The answer is complete.");
  measureContext();
}

function regenerate(turn) {
  if (!state.busy) answerTurn(turn);
}

function continueAnswer(turn, side) {
  if (!state.busy) write(turn, [side]);
}

/** Replace the token `number` of an answer by another one, and continue from there. */
function takeAlternative(turn, side, number, text) {
  if (state.busy) return;
  dropAfter(turn);
  setText(turn.answers[side], turn.answers[side].tokens.slice(0, number), text);
  showAnswer(turn, side);
  continueAnswer(turn, side);
}

/** Give an answer the tokens `kept` and then a text that nobody drew. */
function setText(answer, kept, text) {
  answer.tokens = [...kept, ...(text ? [{ text, logprob: null, top: [] }] : [])];
  answer.text = answer.tokens.map((token) => token.text).join("");
}

/** Drop the turns after `turn`. */
function dropAfter(turn) {
  for (const later of state.turns.splice(state.turns.indexOf(turn) + 1)) later.root.remove();
}

/** Return the number of the first turn whose messages still fit the context with an answer. */
async function firstTurnThatFits(turn) {
  const from = turn.from;
  try {
    for (turn.from = 0; turn.from < turnsBefore(turn).length; turn.from += 1) {
      const counts = await Promise.all(
        asked().map((model, side) => ask("/v1/tokenize", { model, messages: messagesBefore(turn, side) })),
      );
      const fits = await Promise.all(counts.map(async (response) => fitsContext(await response.json())));
      if (fits.every(Boolean)) break;
    }
    return turn.from;
  } catch {
    return from ?? 0; // the answer's request will say what is wrong
  }
}

/** Return whether a prompt leaves room for an answer, or for half the context if that is less. */
function fitsContext({ count, max_model_len: context }) {
  return count + Math.min(state.settings.max_tokens, context / 2) <= context;
}

/** Return the element of a turn, with the views of its answers. */
function turnElement(turn) {
  turn.root = el("article", { className: "turn" });
  showTurn(turn);
  return turn.root;
}

/** Show a turn as it is. */
function showTurn(turn) {
  turn.views = turn.answers.map((_, side) => answerView(turn, side));
  const views = el("div", { className: "answers" }, ...turn.views.map((view) => view.root));
  turn.root.replaceChildren(...(turn.mode === "chat" ? [questionElement(turn)] : []), views);
  turn.answers.forEach((_, side) => showAnswer(turn, side));
}

function questionElement(turn) {
  const edit = button("Edit", () => editQuestion(turn));
  return el(
    "div",
    { className: "asked" },
    el("p", { className: "text" }, turn.question),
    el("div", { className: "actions" }, edit),
  );
}

/** Let the user change a question, and go from there. */
function editQuestion(turn) {
  if (state.busy) return;
  const place = turn.root.querySelector(".asked");
  edit(place, turn.question, { "Ask again": (text) => changeQuestion(turn, text) }, () => showTurn(turn));
}

function changeQuestion(turn, text) {
  turn.question = text;
  answerTurn(turn);
}

/** Let the user change an answer, or the text that was continued. */
function editAnswer(turn, side) {
  if (state.busy) return;
  const answer = turn.answers[side];
  const given = turn.mode === "text" ? turn.question : "";
  const keep = (text) => {
    dropAfter(turn);
    if (turn.mode === "text") turn.question = "";
    setText(answer, [], text);
    showTurn(turn);
  };
  const choices = {
    Save: keep,
    "Save and continue": (text) => {
      keep(text);
      continueAnswer(turn, side);
    },
  };
  edit(turn.views[side].root, given + answer.text, choices, () => showTurn(turn));
}

/** Put an editor into `place`, with a button for each choice and one that changes nothing. */
function edit(place, text, choices, cancel) {
  const box = el("textarea", { value: text, ariaLabel: "Text" });
  const buttons = Object.entries(choices).map(([label, act]) => button(label, () => act(box.value)));
  const bar = el("div", { className: "actions" }, ...buttons, button("Cancel", cancel));
  place.replaceChildren(el("div", { className: "editing" }, box, bar));
  box.addEventListener("keydown", (event) => event.key === "Escape" && cancel());
  box.focus();
}

/** Show all turns, after an import or for a new conversation. */
function showTurns() {
  $("turns").replaceChildren(...state.turns.map(turnElement));
  measureContext();
}
