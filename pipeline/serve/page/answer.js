"use strict";
// One answer: the request that writes it, its text on the page, and what can be done with it.

/** Return an answer that has not been written. */
function newAnswer(model, seed) {
  return { model, seed, given: null, text: "", tokens: [], finish: null, error: null, facts: "" };
}

/** Return the text that an answer continues. Editing it in an answer leaves the turn's as it was. */
function givenOf(turn, answer) {
  return turn.mode === "text" ? (answer.given ?? turn.question) : "";
}

/** Return the body of the request that writes or continues the answer number `side` of a turn. */
function requestFor(turn, side) {
  const answer = turn.answers[side];
  const body = {
    model: answer.model,
    ...state.settings,
    seed: answer.seed,
    timings_per_token: true,
  };
  if (turn.mode === "text") return { ...body, prompt: givenOf(turn, answer) + answer.text, logprobs: ALTERNATIVES };
  const messages = messagesBefore(turn, side);
  if (answer.text) messages.push({ role: "assistant", content: answer.text });
  const continues = answer.text ? { continue_final_message: true } : {};
  // Thoughts stay in the text: they can be seen, edited and continued.
  return { ...body, ...continues, messages, reasoning_format: "none", logprobs: true, top_logprobs: ALTERNATIVES };
}

/** Return the new text of an event and its tokens, from a chat or a completion. */
function partOf(turn, choice) {
  if (turn.mode === "chat") {
    return [choice.delta.content ?? "", choice.logprobs?.content];
  }
  const found = choice.logprobs;
  const tokens = found?.tokens.map((token, number) => ({
    token,
    logprob: found.token_logprobs[number],
    top_logprobs: Object.entries(found.top_logprobs[number])
      .map(([other, logprob]) => ({ token: other, logprob }))
      .sort((one, other) => other.logprob - one.logprob),
  }));
  return [choice.text, tokens];
}

/** Return in words what the server measured: a network may deliver many tokens at once. */
function factsOf({ predicted_n: count, predicted_per_second: speed, prompt_ms: first }) {
  const tokens = count === 1 ? "1 token" : `${count} tokens`;
  return tokens + (speed ? `, ${Number(speed.toPrecision(3))} tokens/s` : "") + `, first after ${(first / 1000).toFixed(2)} s`;
}

/** Write the answer until it ends, is stopped or fails. The text so far is kept in any case. */
async function writeAnswer(turn, side, signal) {
  const answer = turn.answers[side];
  const path = turn.mode === "text" ? "/v1/completions" : "/v1/chat/completions";
  const view = turn.views[side];
  Object.assign(answer, { finish: null, error: null });
  view.trouble.replaceChildren();
  view.root.classList.add("writing");
  try {
    for await (const event of stream(path, requestFor(turn, side), signal)) {
      const choice = event.choices[0];
      if (choice) {
        const [text, logprobs] = partOf(turn, choice);
        answer.finish = choice.finish_reason ?? answer.finish;
        addTokens(turn, side, tokensOf(text, logprobs));
      }
      if (event.timings) answer.facts = factsOf(event.timings);
    }
  } catch (error) {
    answer.finish = error.name === "AbortError" ? "stopped" : "failed";
    if (answer.finish === "failed") {
      answer.error = error.message;
      if (error.status === 0) serverIsGone();
    }
  }
  view.root.classList.remove("writing");
  keepPlace(() => showAnswer(turn, side));
}

/** Append tokens to an answer, and to the page soon. */
function addTokens(turn, side, tokens) {
  const answer = turn.answers[side];
  for (const token of tokens) {
    answer.tokens.push(token);
    answer.text += token.text;
  }
  turn.views[side].drawSoon();
  keepSoon();
}

/** Return the elements of an answer. */
function answerView(turn, side) {
  const root = el("article", { className: "answer", ariaLabel: "Answer" });
  const who = el("p", { className: "who" }, turn.answers[side].model);
  const text = el("div", { className: "text", dir: "auto" });
  const trouble = el("div");
  const facts = el("span", { className: "facts" });
  const actions = el("div", { className: "actions" });
  root.append(who, text, trouble, actions);
  const drawSoon = paced(() => keepPlace(() => drawText(turn, side)));
  return { root, text, trouble, facts, actions, drawSoon, kind: null, drawn: 0, markdown: null };
}

/** Draw what is not on the page yet of an answer: as Markdown, or token by token. */
function drawText(turn, side) {
  const answer = turn.answers[side];
  const view = turn.views[side];
  const kind = state.markdown && turn.mode === "chat" && !isColored() ? "markdown" : "tokens";
  if (view.kind !== kind) {
    Object.assign(view, { kind, drawn: 0, markdown: new Rendered() });
    view.text.replaceChildren(kind === "markdown" ? view.markdown.root : el("span", { className: "given" }, givenOf(turn, answer)));
  }
  view.facts.textContent = factsNow(answer);
  if (kind === "markdown") return view.markdown.grow(answer.text);
  for (; view.drawn < answer.tokens.length; view.drawn += 1) {
    const number = view.drawn;
    const token = tokenElement(answer.tokens[number], (other) => takeAlternative(turn, side, number, other));
    if (isColored()) colorToken(token, number === 0);
    view.text.append(token);
  }
}

/** Draw the answers in another way: as Markdown or not, with or without colors. */
function drawAnswers() {
  for (const turn of state.turns) turn.answers.forEach((_, side) => drawText(turn, side));
  for (const { views } of state.turns) {
    for (const { text } of views) text.querySelectorAll(".token").forEach((token, number) => colorToken(token, number === 0));
  }
}

function factsNow({ facts, finish }) {
  const ending = { stopped: "stopped", length: "cut off at the limit" }[finish];
  return [facts, ending].filter(Boolean).join(", ");
}

/** Show an answer as it is: its text, its error, and what can be done with it. */
function showAnswer(turn, side) {
  const answer = turn.answers[side];
  const { trouble, facts, actions } = turn.views[side];
  drawText(turn, side);
  trouble.replaceChildren(...(answer.error ? [el("p", { className: "error" }, answer.error)] : []));
  const last = turn === state.turns.at(-1);
  const can = [
    [answer.finish === "failed" ? "Try again" : "Regenerate", () => regenerate(turn)],
    ["Continue", () => continueAnswer(turn, side), last || turn.mode === "text"],
    ["Edit answer", () => editAnswer(turn, side)],
    ["Copy", (event) => copy(answer.text, event.currentTarget)],
  ];
  const buttons = can.filter(([, , allowed = true]) => allowed).map(([label, act]) => button(label, act));
  const versions = versionButtons("answer", turn.at, turn.versions.length, (to) => goTo(turn, to), turn);
  actions.replaceChildren(...versions, ...buttons, facts);
}

/** Copy a text. Outside of secure addresses, browsers have only the old way. */
async function copy(text, pressed) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const box = el("textarea", { value: text });
    document.body.append(box);
    box.select();
    document.execCommand("copy");
    box.remove();
    pressed.focus();
  }
  pressed.textContent = "Copied";
  say("Copied");
  setTimeout(() => (pressed.textContent = "Copy"), 1500);
}
