"use strict";
// Where the user writes, and how much of the context that takes.

// On a phone, Enter is a new line.
const phone = matchMedia("(pointer: coarse)");

function sendTyped(event) {
  event.preventDefault();
  const typed = $("input").value;
  if (state.busy || !typed.trim()) return;
  $("input").value = "";
  askQuestion(state.mode === "chat" ? typed.trim() : typed);
}

function stopWriting() {
  state.busy?.abort();
  $("input").focus();
}

/** Show whether an answer is being written. */
function showBusy() {
  const busy = Boolean(state.busy);
  $("send").hidden = busy;
  $("send").disabled = busy;
  $("stop").hidden = !busy;
}

let measuring = null;

/** Count the tokens of what would be sent, a moment after the last change. */
function measureContext() {
  clearTimeout(measuring);
  measuring = setTimeout(countTokens, 300);
}

async function countTokens() {
  const typed = $("input").value;
  const draft = { mode: state.mode, question: typed || "…" };
  const chat = state.mode === "chat";
  const from = chat ? await firstTurnThatFits(draft) : 0;
  const request = chat ? { messages: messagesBefore(draft, 0) } : { prompt: typed };
  try {
    const response = await ask("/v1/tokenize", { model: state.a, ...request });
    const { count, max_model_len: context } = await response.json();
    const room = Math.max(0, Math.min(state.settings.max_tokens, context - count));
    $("gauge").value = Math.min(1, count / context);
    const dropped = from ? `; the oldest ${from === 1 ? "turn is" : from + " turns are"} left out` : "";
    $("context").textContent = `${count} of ${context} tokens, an answer may have ${room}${dropped}`;
  } catch (error) {
    if (error.status !== 0) $("context").textContent = error.message;
  }
}

$("composer").addEventListener("submit", sendTyped);
$("stop").addEventListener("click", stopWriting);
$("input").addEventListener("input", measureContext);
$("input").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.isComposing) return;
  if (event.ctrlKey || event.metaKey || (!event.shiftKey && !phone.matches)) sendTyped(event);
});
addEventListener("keydown", (event) => {
  if (event.key === "Escape") {
    hideAlternatives();
    if (state.busy) stopWriting();
  }
});
