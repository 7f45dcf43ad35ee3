"use strict";
// The sliders: one for each setting, with the defaults that were published with the model.

const SLIDERS = {
  temperature: { label: "Temperature", min: 0, max: 2, step: 0.05 },
  top_p: { label: "Top p", min: 0.05, max: 1, step: 0.05 },
  top_k: { label: "Top k (0: all)", min: 0, max: 200, step: 1 },
  min_p: { label: "Min p (0: off)", min: 0, max: 0.5, step: 0.01 },
  repetition_penalty: { label: "Repetition penalty", min: 1, max: 2, step: 0.05 },
  presence_penalty: { label: "Presence penalty", min: -2, max: 2, step: 0.1 },
  frequency_penalty: { label: "Frequency penalty", min: -2, max: 2, step: 0.1 },
  max_tokens: { label: "Longest answer, tokens", min: 1, max: 2048, step: 1 },
};

const MARKDOWN = "pion-markdown"; // how the user reads: of this browser, and no conversation changes it

/** Show the answers as Markdown, or as they were written. */
function setMarkdown(on) {
  state.markdown = $("markdown").checked = on;
  everyTab.set(MARKDOWN, on ? "on" : "off");
  keepPlace(drawAnswers);
}

/** Make the sliders once. */
function makeSliders() {
  for (const [name, { label, min, max, step }] of Object.entries(SLIDERS)) {
    const output = el("output");
    const input = el("input", { type: "range", id: name, min, max, step });
    input.addEventListener("input", () => {
      state.chosen[name] = state.settings[name] = Number(input.value);
      output.textContent = input.value;
      measureContext();
      keepSoon();
    });
    $("sliders").append(el("label", { className: "slider" }, label + " ", output, input));
  }
  $("seed").addEventListener("input", () => {
    const typed = $("seed").value.trim();
    const valid = /^\d{1,15}$/.test(typed);
    state.seed = valid ? Number(typed) : null;
    $("seed").setCustomValidity(typed && !valid ? "A seed is a whole number." : "");
    $("seed").reportValidity();
    keepSoon();
  });
  $("system").addEventListener("input", () => {
    state.system = $("system").value;
    measureContext();
    keepSoon();
  });
  $("markdown").addEventListener("change", () => setMarkdown($("markdown").checked));
  $("defaults").addEventListener("click", () => {
    state.chosen = {};
    applySettings();
    keepSoon();
  });
}

/** Use what the user chose, and for the rest the defaults of the model that answers. */
function applySettings() {
  const { seq_len: context, sampling } = modelOf(state.a).pion;
  $("max_tokens").max = context;
  state.settings = { ...sampling, ...state.chosen };
  state.settings.max_tokens = Math.min(state.settings.max_tokens, context);
  showSettings();
  measureContext();
}

/** Take over the settings of a conversation. A setting that is no number stays as it is. */
function useSettings(found) {
  const { sampling } = modelOf(state.a).pion;
  for (const [name, { min, max }] of Object.entries(SLIDERS)) {
    if (!Number.isFinite(found?.[name])) continue;
    if (found[name] === sampling[name]) delete state.chosen[name];
    else state.chosen[name] = name === "max_tokens" ? Math.max(min, found[name]) : Math.min(max, Math.max(min, found[name]));
  }
  applySettings();
}

/** Show the settings in their controls. */
function showSettings() {
  for (const name of Object.keys(SLIDERS)) {
    $(name).value = state.settings[name];
    $(name).previousElementSibling.textContent = String(state.settings[name]);
  }
  $("system").value = state.system;
  $("seed").value = state.seed ?? "";
}
