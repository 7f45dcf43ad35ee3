"use strict";
// What the page knows: the models, the settings, and the turns of the conversation.

const FORMAT = "pion-conversation-1";

const state = {
  models: [], // as /v1/models lists them
  a: null, // the id of the model that answers
  b: null, // the id of a second model, or null
  mode: "chat", // or "text": continue the text as it is
  settings: {}, // temperature, top_p, … of all requests
  seed: null, // null: a new one for each question
  system: "",
  turns: [], // {mode, question, answers: [{model, text, tokens, …}]}
  busy: null, // the AbortController of the answers that are being written
};

const modelOf = (id) => state.models.find((model) => model.id === id);
const asked = () => (state.b ? [state.a, state.b] : [state.a]);

/** Return the conversation as JSON that `fromJson` reads. */
function toJson() {
  const turns = state.turns.map(({ mode, question, answers }) => ({ mode, question, answers }));
  const { system, settings, seed, a, b } = state;
  return { format: FORMAT, models: b ? [a, b] : [a], system, settings, seed, turns };
}

/** Take over a conversation; return the names of its models. Throws an Error that says what is wrong. */
function fromJson(json) {
  if (json?.format !== FORMAT || !Array.isArray(json.turns)) {
    throw new Error("this is no conversation that this page exported");
  }
  const text = (value) => (typeof value === "string" ? value : "");
  state.turns = json.turns.map((turn) => ({
    mode: turn.mode === "text" ? "text" : "chat",
    question: text(turn.question),
    answers: (Array.isArray(turn.answers) ? turn.answers : []).slice(0, 2).map((answer) => ({
      model: text(answer.model),
      text: text(answer.text),
      seed: answer.seed ?? null,
      finish: text(answer.finish) || "stop",
      error: text(answer.error) || null,
      facts: text(answer.facts),
      tokens: readTokens(answer.tokens, text(answer.text)),
    })),
  }));
  state.system = text(json.system);
  state.seed = Number.isSafeInteger(json.seed) && json.seed >= 0 ? json.seed : null;
  return (Array.isArray(json.models) ? json.models : []).map(text).filter(Boolean).slice(0, 2);
}

/** Return the tokens of an imported answer if they spell its text, and else none. */
function readTokens(tokens, text) {
  const right =
    Array.isArray(tokens) &&
    tokens.every((token) => typeof token?.text === "string" && Array.isArray(token.top)) &&
    tokens.map((token) => token.text).join("") === text;
  return right ? tokens : [{ text, logprob: null, top: [] }];
}
