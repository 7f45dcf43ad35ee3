"use strict";
// What the page knows: the models, the settings, and the conversation that is open.

const state = {
  models: [], // as /v1/models lists them
  a: null, // the id of the model that answers
  b: null, // the id of a second model, or null
  mode: "chat", // or "text": continue the text as it is
  modeChosen: false, // whether the user chose the mode, or else the model
  chosen: {}, // the settings that the user chose. The others are the model's.
  settings: {}, // temperature, top_p, … of all requests
  markdown: false, // whether answers are shown as Markdown, or else as they were written
  seed: null, // null: a new one for each question
  system: "",
  id: null, // under which the conversation is kept
  name: "", // what the user called it
  root: newVersion([]), // the whole tree of turns
  turns: [], // the turns that are shown: one branch of the tree
  busy: null, // the AbortController of the answers that are being written
  writing: null, // the promise of their end
};

const modelOf = (id) => state.models.find((model) => model.id === id);
const asked = () => (state.b ? [state.a, state.b] : [state.a]);
