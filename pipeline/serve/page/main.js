"use strict";
// Start the page: get the models, connect the buttons, and notice when the server is gone.

/** Get the models; show what was open in this tab; ask for the key if the server wants one. */
async function start() {
  try {
    state.models = (await (await ask("/v1/models")).json()).data;
  } catch (error) {
    if (error.status === 401) return askForKey();
    if (error.status === 0) return serverIsGone(start);
    return showBanner(error.message);
  }
  for (const place of ["model-a", "model-b"]) {
    $(place).replaceChildren(...state.models.map(({ id }) => el("option", { value: id }, id)));
  }
  $("model-b").prepend(el("option", { value: "" }, "no other"));
  $("model-b").value = "";
  $("compare").hidden = state.models.length < 2;
  pickModel(state.models[0].id);
  await resume();
  $("input").focus();
}

function pickModel(id) {
  state.a = $("model-a").value = id;
  const { pion } = modelOf(id);
  const size = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });
  const parameters = size.format(pion.parameters);
  $("about").textContent = `${pion.label}: ${parameters} parameters, a context of ${pion.seq_len.toLocaleString("en")} tokens`;
  document.title = `${id} – Pion`;
  forgetFit();
  applySettings();
  followModel();
  showNotice();
}

/** Use the mode that suits the model, unless the user or a conversation has another. */
function followModel() {
  if (!state.modeChosen && !state.turns.length) setMode(modelOf(state.a).pion.chat ? "chat" : "text");
}

/** Let a second model answer, too; null: none. */
function pickOther(id) {
  state.b = id;
  $("model-b").value = id ?? "";
  document.body.classList.toggle("wide", Boolean(id));
  forgetFit();
  measureContext();
  showNotice();
}

function setMode(mode) {
  state.mode = mode;
  const chat = mode === "chat";
  $("mode-chat").ariaPressed = String(chat);
  $("mode-text").ariaPressed = String(!chat);
  $("input").placeholder = chat ? "Ask something" : "Write the beginning of a text";
  $("input-label").textContent = chat ? "Message" : "Text to continue";
  $("send").textContent = chat ? "Send" : "Continue";
  $("system-row").hidden = !chat;
  showNotice();
  measureContext();
}

/** Say that a model without a chat template is asked to chat. */
function showNotice() {
  const bare = asked().some((id) => id && !modelOf(id).pion.chat);
  $("notice").hidden = !(bare && state.mode === "chat");
}

function showBanner(words) {
  $("banner").textContent = words;
  $("banner").hidden = !words;
}

let looking = false;

/** Say that the server is gone, and look for it until it is back. */
function serverIsGone(then = () => {}) {
  if (looking) return;
  looking = true;
  showBanner("The server does not answer. Your text is kept. The page looks for the server every two seconds.");
  const look = setInterval(async () => {
    try {
      await ask("/v1/models");
    } catch (error) {
      if (error.status === 0) return;
    }
    clearInterval(look);
    looking = false;
    showBanner("");
    say("The server is back.");
    then();
  }, 2000);
}

function askForKey() {
  $("key-wrong").hidden = !tab.get(KEY);
  $("ask-key").showModal();
}

function saveConversation() {
  const file = new Blob([JSON.stringify(toJson(), null, 1)], { type: "application/json" });
  const link = el("a", { href: URL.createObjectURL(file), download: "conversation.json" });
  link.click();
  URL.revokeObjectURL(link.href);
}

/** Make a file a conversation of its own. What was open stays in the list. */
async function loadConversation() {
  const [file] = $("file").files;
  $("file").value = "";
  if (!file) return;
  try {
    const found = fromJson(JSON.parse(await file.text()));
    await leave();
    show(newId(), found, file.name);
    keepSoon();
  } catch (error) {
    showBanner(`${file.name} was not imported: ${error.message}.`);
  }
}

/** Choose the models of a conversation, and set its settings. Say which models are not here. */
function takeModels(names, settings, what) {
  const [a, b] = names.map((name) => modelOf(name)?.id);
  if (a) pickModel(a);
  if (names.length) pickOther(b ?? null);
  useSettings(settings);
  const missing = names.filter((name) => !modelOf(name)).join(" and ");
  if (missing) showBanner(`${what} was written with ${missing}, not served here. ${asked().join(" and ")} will answer now.`);
}

function toggleSettings() {
  const open = $("settings").hidden;
  $("settings").hidden = !open;
  $("open-settings").ariaExpanded = String(open);
  if (!open) $("open-settings").focus();
}

function toggle(name, on) {
  $(name).ariaPressed = String(on);
}

$("key-form").addEventListener("submit", () => {
  tab.set(KEY, $("key").value.trim());
  $("key").value = "";
  start();
});
$("ask-key").addEventListener("cancel", (event) => event.preventDefault());
$("model-a").addEventListener("change", () => {
  pickModel($("model-a").value);
  keepSoon();
});
$("model-b").addEventListener("change", () => {
  pickOther($("model-b").value || null);
  keepSoon();
});
for (const [id, mode] of [["mode-chat", "chat"], ["mode-text", "text"], ["to-text", "text"]]) {
  $(id).addEventListener("click", () => {
    state.modeChosen = true;
    setMode(mode);
    keepSoon();
  });
}
$("colors").addEventListener("click", () => {
  toggle("colors", document.body.classList.toggle("colored"));
  keepPlace(drawAnswers);
});
for (const id of ["new", "new-in-list"]) $(id).addEventListener("click", startNew);
$("save").addEventListener("click", saveConversation);
$("load").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", loadConversation);
$("open-settings").addEventListener("click", toggleSettings);
$("close-settings").addEventListener("click", toggleSettings);

makeSliders();
setMarkdown(everyTab.get(MARKDOWN) === "on");
openHistory().then(start);
