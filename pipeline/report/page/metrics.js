// What the numbers of a run are called, and how their values are written: in the read-out, and on the axis.
"use strict";

const percent = (part) => `${(100 * part).toFixed(1)} %`;
const decimals = (digits) => (value) => value.toFixed(digits);
const METRICS = {
  __proto__: null,
  loss: ["Loss in nats per token, and on held-out text (dashed)", decimals(4)],
  held_out_loss: ["Loss on held-out text, in nats per token", decimals(4)],
  held_out: ["Loss on held-out text of each source, in nats per token", decimals(4)],
  accuracy: ["Preferences that the model gets right, in training", percent, (part) => `${short(100 * part)} %`],
  held_out_accuracy: ["Held-out preferences that the model gets right", percent, (part) => `${short(100 * part)} %`],
  margin: ["Margin of the preferences", decimals(3)],
  held_out_margin: ["Margin of the held-out preferences", decimals(3)],
  chosen: ["Chosen and rejected (dashed) answers: nats above the reference", decimals(3)],
  chosen_nll: ["Chosen answers: loss in nats per token", decimals(4)],
  drift: ["Chosen answers: nats per token below the reference", decimals(4)],
  moved: ["Nats between a preference and the reference", decimals(3)],
  pairs: ["Preferences in a step", whole],
  saturated: ["Preferences that teach nothing any more", percent, (part) => `${short(100 * part)} %`],
  reward: ["Reward, and that of held-out prompts (dashed)", decimals(3)],
  pass: ["Answers that are right, and to held-out prompts (dashed)", percent, (part) => `${short(100 * part)} %`],
  pass_any: ["Prompts with a right answer", percent, (part) => `${short(100 * part)} %`],
  signal: ["Prompts that teach: the rewards of their answers differ", percent, (part) => `${short(100 * part)} %`],
  entropy: ["Entropy of the answers, in nats per token", decimals(3)],
  answer_tokens: ["Tokens of an answer", decimals(1)],
  unfinished: ["Answers without an end", percent, (part) => `${short(100 * part)} %`],
  mismatch: ["Nats per token between sampling and training", (value) => value.toExponential(2)],
  lr: ["Learning rate", (value) => value.toExponential(3)],
  grad_norm: ["Norm of the gradients", decimals(4)],
  tokens_per_second: ["Tokens per second", whole],
  mfu: ["Model FLOPs utilization", percent, (part) => `${short(100 * part)} %`],
  memory: ["Memory of a worker", size, size],
  tokens: ["Tokens in the loss of a step", whole],
  expert_load: ["Load of the busiest expert", decimals(2)],
  router_entropy: ["Entropy of the routers, in nats", decimals(3)],
  recipe_entropy: ["Entropy of the recipes, in nats", decimals(3)],
  primitives_used: ["Primitives used, of each bank", decimals(1)],
  gate_loss: ["Loss of the gates, in nats", decimals(4)],
};
// A chart for each of these is there at first.
const USUAL = ["loss", "held_out", "accuracy", "chosen", "reward", "signal", "entropy", "answer_tokens", "tokens_per_second", "lr"];
// The charts with a second, dashed line: its metric, and what both lines are called.
const SECOND = {
  __proto__: null,
  loss: ["held_out_loss", "training", "held-out"],
  chosen: ["rejected", "chosen", "rejected"],
  reward: ["held_out_reward", "training", "held-out"],
  pass: ["held_out_pass", "training", "held-out"],
};
// These are drawn as they were measured.
const isExact = (name) => name === "lr" || name.startsWith("held_out");

function titleOf(name) {
  if (METRICS[name]) return METRICS[name][0];
  const words = name.replaceAll("_", " ");
  return words[0].toUpperCase() + words.slice(1);
}

const formatOf = (name) => METRICS[name]?.[1] ?? ((value) => String(Number(value.toPrecision(5))));
const tickOf = (name) => METRICS[name]?.[2] ?? short;

// The names of the charts that runs can have in a stage. The layers' lowest and highest are in the mean's chart.
function chartNames(runs, stage) {
  const names = new Set(runs.flatMap((run) => run.metrics?.[stage] ?? []).filter((name) => !name.includes(".")));
  if (names.has("chosen")) names.delete("rejected");
  // Of rewards, the loss is minus the reward.
  if (names.has("reward")) for (const name of ["loss", "held_out_loss", "held_out_reward", "held_out_pass"]) names.delete(name);
  const order = Object.keys(METRICS).filter((name) => names.has(name));
  return [...order, ...[...names].filter((name) => !METRICS[name])];
}

// The parts of a curve that is a mean of sources, as a run has them in a stage.
const sourcesOf = (run, stage, name) => (name === "held_out" ? (run.metrics?.[stage] ?? []).filter((one) => one.startsWith("held_out.")) : []);

// The curves that a chart draws.
const curvesIn = (name, stage) =>
  SECOND[name] ? [name, SECOND[name][0]] : [name, `${name}.lowest`, `${name}.highest`, ...known.runs.flatMap((run) => sourcesOf(run, stage, name))];
