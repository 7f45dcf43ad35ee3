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
  return { ...body, ...continues, messages, logprobs: true, top_logprobs: ALTERNATIVES };
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
      view.facts.textContent = answer.facts;
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

/** Append tokens to an answer and to the page. Nothing that is shown is written again. */
function addTokens(turn, side, tokens) {
  const answer = turn.answers[side];
  const view = turn.views[side];
  keepPlace(() => {
    for (const token of tokens) {
      const number = answer.tokens.length;
      answer.tokens.push(token);
      answer.text += token.text;
      view.text.append(tokenElement(token, (other) => takeAlternative(turn, side, number, other)));
    }
    if (document.body.classList.contains("colored")) colorTokens(view.text);
  });
  keepSoon();
}

/** Return the elements of an answer. */
function answerView(turn, side) {
  const root = el("section", { className: "answer", ariaLabel: "Answer" });
  const who = el("p", { className: "who" }, turn.answers[side].model);
  const text = el("p", { className: "text", dir: "auto" });
  const facts = el("span", { className: "facts" });
  const actions = el("div", { className: "actions" });
  root.append(who, text, actions);
  return { root, text, facts, actions };
}

/** Show an answer as it is: its text, its error, and what can be done with it. */
function showAnswer(turn, side) {
  const answer = turn.answers[side];
  const { text, facts, actions } = turn.views[side];
  const shown = answer.tokens.map((token, number) =>
    tokenElement(token, (other) => takeAlternative(turn, side, number, other)),
  );
  text.querySelector(".error")?.remove();
  const given = givenOf(turn, answer);
  if (text.querySelectorAll(".token").length !== shown.length || text.textContent !== given + answer.text) {
    text.replaceChildren(el("span", { className: "given" }, given), ...shown);
  }
  if (answer.error) text.append(el("span", { className: "error" }, answer.error));
  colorTokens(text);
  const last = turn === state.turns.at(-1);
  const can = [
    [answer.finish === "failed" ? "Try again" : "Regenerate", () => regenerate(turn)],
    ["Continue", () => continueAnswer(turn, side), last || turn.mode === "text"],
    ["Edit answer", () => editAnswer(turn, side)],
    ["Copy", (event) => copy(answer.text, event.currentTarget)],
  ];
  const buttons = can.filter(([, , allowed = true]) => allowed).map(([label, act]) => button(label, act));
  const ending = { stopped: "stopped", length: "cut off at the limit" }[answer.finish];
  facts.textContent = [answer.facts, ending].filter(Boolean).join(", ");
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
