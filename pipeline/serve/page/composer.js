"use strict";
// Where the user writes.

// On a phone, Enter is a new line.
const phone = matchMedia("(pointer: coarse)");

function sendTyped(event) {
  event.preventDefault();
  const typed = $("input").value;
  if (state.busy || !typed.trim()) return;
  $("input").value = "";
  hideUndo();
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

$("composer").addEventListener("submit", sendTyped);
$("stop").addEventListener("click", stopWriting);
$("input").addEventListener("input", () => {
  const { value, maxLength } = $("input");
  if (value.length >= maxLength) showBanner(`The text was cut off after ${maxLength.toLocaleString("en")} characters.`);
  measureContext();
  keepSoon(false);
});
$("input").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.isComposing) return;
  if (event.ctrlKey || event.metaKey || (!event.shiftKey && !phone.matches)) sendTyped(event);
});
addEventListener("keydown", (event) => {
  if (event.key === "Escape") {
    hideAlternatives();
    if (state.busy) stopWriting();
    else if (isDrawer() && !$("history").hidden) toggleHistory();
  }
});
