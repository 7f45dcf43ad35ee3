"use strict";
// The list of conversations: search, open, rename, delete.

const MOST_SHOWN = 200;
const narrow = matchMedia("(max-width: 44rem)");
const roomy = matchMedia("(min-width: 64rem)");

/** Whether the list lies over the conversation, as on a phone. */
const isDrawer = () => narrow.matches;

let drawn = ""; // what the list shows now, so that nothing is made anew in vain

async function openHistory() {
  await store.open();
  for (const header of await store.headers()) headers.set(header.id, header);
  if (roomy.matches) toggleHistory();
}

function toggleHistory() {
  const open = $("history").hidden;
  $("history").hidden = !open;
  $("shade").hidden = !open;
  $("open-history").ariaExpanded = String(open);
  document.body.classList.toggle("listed", open);
  if (open) showHistory();
  if (open && isDrawer()) $("search").focus();
  else if (!open) $("open-history").focus();
}

/** Show the list, and why the browser keeps nothing, if so. */
function showHistory() {
  $("trouble").textContent = store.trouble && `Conversations can't be kept in this browser: ${store.trouble}. Export keeps one in a file.`;
  $("trouble").hidden = !store.trouble;
  $("clear").disabled = !headers.size;
  const words = $("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const found = [...headers.values()]
    .filter(({ title, text }) => words.every((word) => `${title}\n${text}`.toLowerCase().includes(word)))
    .sort((one, other) => other.changed - one.changed);
  const seen = JSON.stringify([state.id, words, found.map(({ id, title, changed }) => [id, title, when(changed)])]);
  if (seen === drawn || $("list").querySelector("input")) return;
  drawn = seen;
  const focus = document.activeElement?.dataset?.focus;
  $("list").replaceChildren(...found.slice(0, MOST_SHOWN).map(itemOf));
  $("found").textContent = summary(found.length, words.length > 0);
  if (focus) $("list").querySelector(`[data-focus="${CSS.escape(focus)}"]`)?.focus();
}

function summary(count, searched) {
  if (!count) return searched ? "Nothing found." : "Nothing here yet.";
  return count > MOST_SHOWN ? `The newest ${MOST_SHOWN} of ${count}. Search for the others.` : "";
}

/** Return the time of today, and else the day. */
function when(time) {
  const date = new Date(time);
  const today = date.toDateString() === new Date().toDateString();
  const part = today ? { hour: "2-digit", minute: "2-digit" } : { day: "numeric", month: "short", year: "numeric" };
  return date.toLocaleString("en", { ...part, hourCycle: "h23" });
}

/** Return the element of a conversation in the list. */
function itemOf({ id, title, changed }) {
  const open = button("", () => openFromList(id));
  open.append(el("span", { className: "title", dir: "auto" }, title), el("small", {}, when(changed)));
  open.className = "open";
  if (id === state.id) open.ariaCurrent = "true";
  const item = el("li", {}, open);
  const change = iconButton("rename", `Rename ${title}`, () => editName(item, id, title));
  const remove = iconButton("delete", `Delete ${title}`, () => removeFromList(id, title));
  for (const [name, made] of Object.entries({ open, change, remove })) made.dataset.focus = `${id} ${name}`;
  item.append(change, remove);
  return item;
}

async function openFromList(id) {
  if (id !== state.id && !(await openConversation(id))) return;
  if (isDrawer()) toggleHistory();
  $("input").focus();
}

async function removeFromList(id, title) {
  const place = [...$("list").children].findIndex((item) => item.firstChild.dataset.focus === `${id} open`);
  await deleteConversations([id], `“${title}” was deleted.`);
  const next = $("list").children[Math.min(place, $("list").children.length - 1)];
  (next?.firstChild ?? $("search")).focus();
}

/** Let the user change a name where it stands. */
function editName(item, id, title) {
  const box = el("input", { value: title, ariaLabel: "Name", maxLength: 80, dir: "auto" });
  let ended = false; // removing the box takes the focus from it, which ends the change again
  const end = async (name) => {
    if (ended) return;
    ended = true;
    box.remove();
    drawn = "";
    if (name !== null && name !== title) await rename(id, name);
    showHistory();
    $("list").querySelector(`[data-focus="${CSS.escape(id)} change"]`)?.focus();
  };
  box.addEventListener("keydown", (event) => {
    if (event.key === "Enter") end(box.value.trim());
    if (event.key === "Escape") end(null);
    event.stopPropagation();
  });
  box.addEventListener("blur", () => end(box.value.trim()));
  item.replaceChildren(box);
  box.select();
}

function askToClear() {
  const { size } = headers;
  $("clear-title").textContent = size === 1 ? "Delete this conversation?" : `Delete all ${size} conversations?`;
  $("ask-clear").showModal();
}

$("open-history").addEventListener("click", toggleHistory);
$("close-history").addEventListener("click", toggleHistory);
$("shade").addEventListener("click", toggleHistory);
$("search").addEventListener("input", showHistory);
$("clear").addEventListener("click", askToClear);
$("ask-clear").addEventListener("close", async () => {
  if ($("ask-clear").returnValue === "delete") await deleteConversations([...headers.keys()], "All conversations were deleted.");
  $("ask-clear").returnValue = "";
});
