"use strict";
// Undo: the last changes of what there is to see, and how each is taken back.

const MOST_UNDO = 30;
const changes = []; // {words, takeBack, local}

/** Say that something was changed, and offer to take it back. `local`: only while this conversation is open. */
function offerUndo(words, takeBack, local = true) {
  changes.push({ words, takeBack, local });
  if (changes.length > MOST_UNDO) changes.shift();
  $("undo-words").textContent = words;
  $("undo-bar").hidden = false;
  say(words);
}

/** Forget the changes of the conversation that was open. */
function leaveChanges() {
  for (let number = changes.length - 1; number >= 0; number -= 1) {
    if (changes[number].local) changes.splice(number, 1);
  }
  hideUndo();
}

function hideUndo() {
  $("undo-bar").hidden = true;
}

async function undo() {
  if (state.busy) return say("Stop the answer first.");
  const last = changes.pop();
  hideUndo();
  if (!last) return say("There is nothing to undo.");
  await last.takeBack();
  say("Undone: " + last.words);
}

$("undo").addEventListener("click", async () => {
  await undo();
  $("input").focus();
});
$("hide-undo").addEventListener("click", () => {
  hideUndo();
  $("input").focus();
});
addEventListener("keydown", (event) => {
  const isUndo = (event.ctrlKey || event.metaKey) && !event.shiftKey && event.key.toLowerCase() === "z";
  // In a text field, the browser takes back what was typed.
  if (!isUndo || event.target.closest?.("input, textarea, select, dialog")) return;
  event.preventDefault();
  undo();
});
