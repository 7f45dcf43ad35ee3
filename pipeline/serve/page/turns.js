"use strict";
// The conversation: ask, edit and go from there, regenerate, continue, and compare.

/** Return the messages before the answer number `side` of a turn, with this turn's question. */
function messagesBefore(turn, side, from = turn.from ?? 0) {
  const messages = state.system ? [{ role: "system", content: state.system }] : [];
  for (const earlier of turnsBefore(turn).slice(from)) {
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
  const turn = addTurn(state.turns.at(-1)?.version ?? state.root, state.mode, question);
  showBranch(turn);
  await answerTurn(turn);
}

/** Let all models write a new version of the answers to a turn. */
async function answerTurn(turn) {
  // Both sides of a comparison draw with the same seed.
  const seed = state.seed ?? crypto.getRandomValues(new Uint32Array(1))[0];
  const answers = asked().map((model) => newAnswer(model, seed));
  if (isBlank(turn.version)) turn.version.answers = answers;
  else addVersion(turn, answers);
  showBranch(turn);
  await write(turn, answers.map((_, side) => side));
}

/** Return whether nothing would be lost with these answers, such as with a request that failed. */
function isBlank(version) {
  return version && !version.turns.length && !version.answers.some((answer) => answer.text);
}

/** Let the models write some answers of a turn at the same time. */
function write(turn, sides) {
  state.busy = new AbortController();
  showBusy();
  state.writing = writeAll(turn, sides, state.busy.signal);
  return state.writing;
}

async function writeAll(turn, sides, signal) {
  keepSoon();
  turn.from = turn.mode === "chat" ? await firstTurnThatFits(turn) : 0;
  await Promise.all(sides.map((side) => writeAnswer(turn, side, signal)));
  state.busy = null;
  showBusy();
  keepPlace(() => {
    for (const other of state.turns) other.answers.forEach((_, side) => showAnswer(other, side));
  });
  const failed = turn.answers.find((answer) => answer.error);
  say(failed ? failed.error : "The answer is complete.");
  measureContext();
  await keepNow();
}

function regenerate(turn) {
  if (state.busy) return;
  if (!isBlank(turn.version)) offerVersion(turn, "The answer is being written again. The earlier one is kept.");
  answerTurn(turn);
}

function continueAnswer(turn, side) {
  if (!state.busy) write(turn, [side]);
}

/** Replace the token `number` of an answer by another one, and continue from there, in a new version. */
function takeAlternative(turn, side, number, text) {
  if (state.busy) return;
  const answer = changedAnswer(turn, side, "The answer continues with another token. The earlier one is kept.");
  setText(answer, answer.tokens.slice(0, number), text);
  showBranch(turn);
  continueAnswer(turn, side);
}

/** Add a copy of a turn's answers as a version, offer to undo that, and return the answer to change. */
function changedAnswer(turn, side, words) {
  offerVersion(turn, words);
  addVersion(turn, turn.answers.map((answer) => ({ ...answer, tokens: [...answer.tokens] })));
  return Object.assign(turn.answers[side], { finish: null, error: null, facts: "" });
}

/** Offer to go back to the version of a turn's answers that is shown now. */
function offerVersion(turn, words) {
  const { at } = turn;
  offerUndo(words, () => goTo(turn, at));
}

/** Give an answer the tokens `kept` and then a text that nobody drew. */
function setText(answer, kept, text) {
  answer.tokens = [...kept, ...(text ? [{ text, logprob: null, top: [] }] : [])];
  answer.text = answer.tokens.map((token) => token.text).join("");
}

/** Show another version of a turn's answers, and what followed it. */
function goTo(turn, at) {
  turn.at = at;
  showBranch(turn);
  keepSoon();
}

/** Show another version of a question, and what followed it. */
function goToQuestion(under, at) {
  under.at = at;
  showBranch(under.turns[at]);
  keepSoon();
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

/** Return buttons that show the version before and after, or nothing if there is only one. */
function versionButtons(what, at, count, show, turn) {
  if (count < 2) return [];
  const step = (label, words, to) => {
    const made = button(label, () => {
      if (state.busy) return say("Stop the answer first.");
      show(to);
      // The buttons were made anew, and one of them had the focus.
      const same = document.querySelector(`[data-focus="${CSS.escape(made.dataset.focus)}"]`);
      (same?.disabled ? same.parentElement.querySelector("button:enabled") : same)?.focus();
    });
    made.ariaLabel = `${words} version of the ${what}`;
    made.dataset.focus = `${state.turns.indexOf(turn)} ${what} ${label}`;
    made.disabled = to < 0 || to >= count;
    return made;
  };
  const group = el("span", { className: "versions", role: "group", ariaLabel: `Versions of the ${what}` });
  group.append(step("‹", "Previous", at - 1), `${at + 1}/${count}`, step("›", "Next", at + 1));
  return [group];
}

// A browser takes minutes to set ten million characters.
const MOST_SHOWN_TEXT = 50_000;

/** Return a text, or the beginning of a very long one and how much more there is. */
function beginning(text) {
  const more = text.length - MOST_SHOWN_TEXT;
  return more > 0 ? `${text.slice(0, MOST_SHOWN_TEXT)}… (${more.toLocaleString("en")} more characters)` : text;
}

function questionElement(turn) {
  const change = button("Edit", () => editQuestion(turn));
  const { turns, at } = turn.under;
  const versions = versionButtons("question", at, turns.length, (to) => goToQuestion(turn.under, to), turn);
  return el(
    "div",
    { className: "asked" },
    el("p", { className: "text", dir: "auto" }, beginning(turn.question)),
    el("div", { className: "actions" }, ...versions, change),
  );
}

/** Let the user change a question, and go from there. */
function editQuestion(turn) {
  if (state.busy) return;
  const place = turn.root.querySelector(".asked");
  edit(place, turn.question, { "Ask again": (text) => changeQuestion(turn, text) }, () => showTurn(turn));
}

/** Ask a changed question as another version. The earlier one keeps its answers and what followed. */
function changeQuestion(turn, text) {
  if (text === turn.question) return regenerate(turn);
  const { under } = turn;
  const { at } = under;
  offerUndo("The question was changed. The earlier one is kept.", () => goToQuestion(under, at));
  const changed = addTurn(under, turn.mode, text);
  showBranch(changed);
  answerTurn(changed);
}

/** Let the user change an answer, or the text that was continued. */
function editAnswer(turn, side) {
  if (state.busy) return;
  const given = givenOf(turn, turn.answers[side]);
  const keep = (text) => {
    const answer = changedAnswer(turn, side, "The answer was changed. The earlier one is kept.");
    if (turn.mode === "text") answer.given = "";
    setText(answer, [], text);
    showBranch(turn);
    keepSoon();
  };
  const choices = {
    Save: keep,
    "Save and continue": (text) => {
      keep(text);
      continueAnswer(turn, side);
    },
  };
  edit(turn.views[side].root, given + turn.answers[side].text, choices, () => showTurn(turn));
}

/** Put an editor into `place`, with a button for each choice and one that changes nothing. */
function edit(place, text, choices, cancel) {
  const box = el("textarea", { value: text, ariaLabel: "Text", dir: "auto" });
  const buttons = Object.entries(choices).map(([label, act]) => button(label, () => act(box.value)));
  const bar = el("div", { className: "actions" }, ...buttons, button("Cancel", cancel));
  place.replaceChildren(el("div", { className: "editing" }, box, bar));
  box.addEventListener("keydown", (event) => event.key === "Escape" && cancel());
  box.focus();
}

/** Show the chosen branch. Before `changed`, what is shown stays. */
function showBranch(changed) {
  state.turns = branch(state.root);
  const place = state.turns.indexOf(changed);
  if (place < fitted.from) forgetFit();
  keepPlace(() => {
    while ($("turns").children.length > place) $("turns").lastChild.remove();
    $("turns").append(...state.turns.slice(place).map(turnElement));
  });
  measureContext();
}

/** Show all turns, such as of another conversation. */
function showTurns() {
  state.turns = branch(state.root);
  $("turns").replaceChildren(...state.turns.map(turnElement));
  forgetFit();
  measureContext();
}
