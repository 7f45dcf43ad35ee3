"use strict";
// How much of the context a request takes, and how many of the oldest turns must be left out.

let measuring = null; // the timer until the next count
let counting = null; // the AbortController of the count that is under way
// Where the last search ended: the first turn that is sent, and for each model the tokens of the turn
// before it. As long as these do not fit into what is spare, one request is enough.
let fitted = { from: 0, weights: null };

/** Search anew: other turns are shown, or other models asked. */
function forgetFit() {
  fitted = { from: 0, weights: null };
}

/** Count the tokens of what would be sent, a moment after the last change. */
function measureContext() {
  clearTimeout(measuring);
  counting?.abort();
  measuring = setTimeout(countTokens, 300);
}

async function countTokens() {
  const typed = $("input").value;
  counting = new AbortController();
  const draft = { mode: state.mode, question: typed || "…", answers: [] };
  try {
    showContext(await (state.mode === "chat" ? fit(draft, counting.signal) : measureText(typed, counting.signal)));
  } catch (error) {
    if (error.status) $("context").textContent = error.message;
  }
}

function showContext({ count, context, from }) {
  const room = Math.max(0, Math.min(state.settings.max_tokens, context - count));
  $("gauge").value = Math.min(1, count / context);
  const dropped = from ? `; the oldest ${from === 1 ? "turn is" : from + " turns are"} left out` : "";
  $("context").textContent = `${count} of ${context} tokens, an answer may have ${room}${dropped}`;
}

/** Return the number of the first turn whose messages still fit the context with an answer. */
async function firstTurnThatFits(turn) {
  try {
    return (await fit(turn)).from;
  } catch {
    return 0; // the answer's request will say what is wrong
  }
}

const fits = ({ spares }) => spares.every((spare) => spare >= 0);

/** Find the first turn that is sent with `turn`, whose own messages always are. */
async function fit(turn, signal) {
  const most = turnsBefore(turn).length;
  if (fitted.from > most) forgetFit();
  const first = await measure(turn, fitted.from, signal);
  const least = !first.from || first.spares.some((spare, side) => spare < fitted.weights[side]);
  if (least && (fits(first) || first.from === most)) return first;
  const tried = new Map([[first.from, first]]);
  const at = async (from) => tried.get(from) ?? tried.set(from, await measure(turn, from, signal)).get(from);
  let [low, high] = fits(first) ? [0, first.from] : [Math.min(first.from + 1, most), most];
  while (low < high) {
    const middle = Math.floor((low + high) / 2);
    if (fits(await at(middle))) high = middle;
    else low = middle + 1;
  }
  const best = await at(low);
  const before = low ? await at(low - 1) : null;
  fitted = { from: low, weights: before && best.spares.map((spare, side) => spare - before.spares[side]) };
  return best;
}

/** Count a prompt without the first `from` turns, and what is spare for each model. */
async function measure(turn, from, signal) {
  const requests = asked().map((model, side) => ({ model, messages: messagesBefore(turn, side, from) }));
  const counts = await Promise.all(requests.map((request) => countOf(request, signal)));
  // An answer should have the room it may take, or half the context if that is less.
  const spares = counts.map(({ count, context }) => {
    return context - count - Math.min(state.settings.max_tokens, context / 2);
  });
  return { ...counts[0], from, spares };
}

async function measureText(prompt, signal) {
  return { ...(await countOf({ model: state.a, prompt }, signal)), from: 0 };
}

async function countOf(request, signal) {
  const { count, max_model_len: context } = await (await ask("/v1/tokenize", request, signal)).json();
  return { count, context };
}
