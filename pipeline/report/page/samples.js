// What the models wrote while they were trained: of one run all texts, of several runs side by side.
"use strict";

const sampleTitle = (sample) => `${STAGES[sample.stage] ?? sample.stage} step ${whole(sample.step)}`;
const sampleText = (sample) => make("p", { dir: "auto" }, make("b", {}, sample.prompt), sample.text);

function showSamples() {
  if (known.runs.length > 1) return compareSamples();
  const run = known.runs[view.run], text = (sample) => make("div", { class: "card" }, make("h3", {}, sampleTitle(sample)), sampleText(sample));
  const first = run.samples.filter((sample) => sample.first);
  fill("samples", "Samples", ...few(first, run.samples, (shown) => shown.map(text)));
}

// The moments at which some run wrote a text, as "stage step", in their order.
function sampleMoments(runs) {
  const found = new Map();
  for (const run of runs) for (const { stage, step } of run.samples) found.set(`${stage} ${step}`, [Object.keys(STAGES).indexOf(stage), step]);
  return [...found].sort(([, a], [, b]) => a[0] - b[0] || a[1] - b[1]).map(([moment]) => moment);
}

// The newest text of a run that follows the prompt and was written in the moment's stage, at its step or before.
function sampleUntil(run, prompt, moment) {
  const [stage, step] = moment.split(" ");
  const fit = run.samples.filter((sample) => sample.prompt === prompt && sample.stage === stage && sample.step <= step);
  return fit.reduce((newest, sample) => (newest && newest.step >= sample.step ? newest : sample), null);
}

// Show the texts of all runs at one moment next to each other. The slider chooses the moment.
function compareSamples() {
  const runs = known.runs.filter((run, i) => run.samples?.length && !view.hidden.includes(i));
  const moments = sampleMoments(runs), prompts = [...new Set(runs.flatMap((run) => run.samples.map((sample) => sample.prompt)))];
  if (!moments.length) return fill("samples", "");
  const kept = moments.indexOf(compareSamples.moment);
  const slider = make("input", { type: "range", id: "moment", min: "0", max: String(moments.length - 1), "aria-label": "Step of the samples" });
  slider.value = kept < 0 ? moments.length - 1 : kept;
  const said = make("output", { for: "moment" }), content = make("div", {});
  const card = (run, prompt, moment) => {
    const sample = sampleUntil(run, prompt, moment);
    const name = make("h3", {}, make("i", { class: `swatch b${known.runs.indexOf(run)}` }), ` ${run.name}${sample ? `, ${sampleTitle(sample)}` : ""}`);
    return make("div", { class: "card" }, name, sample ? sampleText(sample) : make("p", { class: "faint" }, "no text of this stage yet"));
  };
  const show = () => {
    const moment = moments[slider.value];
    const [stage, step] = moment.split(" ");
    said.textContent = sampleTitle({ stage, step: Number(step) });
    slider.setAttribute("aria-valuetext", said.textContent);
    content.replaceChildren(...prompts.map((prompt) => make("div", { class: "beside" }, runs.map((run) => card(run, prompt, moment)))));
  };
  slider.addEventListener("input", () => {
    compareSamples.moment = Number(slider.value) === moments.length - 1 ? null : moments[slider.value];
    show();
  });
  const focused = document.activeElement?.id === "moment";
  fill("samples", "Samples, side by side", make("label", { class: "control" }, slider, said), content);
  show();
  if (focused) slider.focus();
}
