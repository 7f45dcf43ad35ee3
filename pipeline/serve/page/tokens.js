"use strict";
// The text of an answer, token by token: how surprising each token was, and what else was likely.

const ALTERNATIVES = 5;
// A token as unlikely as exp(-SURPRISING) has the full color.
const SURPRISING = 6;

/** Return the tokens of an event; several are joined if they are only together whole characters. */
function tokensOf(text, logprobs) {
  const found = (logprobs ?? []).map(({ token, logprob, top_logprobs: top }) => ({
    text: token,
    logprob,
    top: top.map((other) => ({ text: other.token, logprob: other.logprob })),
  }));
  if (found.length && found.map((token) => token.text).join("") === text) return found;
  if (!found.length) return text ? [{ text, logprob: null, top: [] }] : [];
  const sum = found.reduce((total, token) => total + token.logprob, 0);
  return [{ text, logprob: sum, top: found.length === 1 ? found[0].top : [] }];
}

/** Return the element of a token. `choose(text)` continues the answer with another token. */
function tokenElement(token, choose) {
  const made = el("span", { className: "token", tabIndex: -1 }, token.text);
  if (token.logprob === null) return made;
  made.dataset.alternatives = token.top.length;
  const share = Math.min(1, -token.logprob / SURPRISING);
  made.dataset.surprise = share.toFixed(2);
  const open = () => isColored() && showAlternatives(made, token, choose);
  made.addEventListener("mouseenter", open);
  made.addEventListener("focus", open);
  made.addEventListener("mouseleave", hideSoon);
  made.addEventListener("blur", hideSoon);
  return made;
}

const isColored = () => document.body.classList.contains("colored");

/** Color a token, or take its color away. The first one of an answer can be reached by Tab. */
function colorToken(token, isFirst) {
  const on = isColored();
  token.tabIndex = on && isFirst ? 0 : -1;
  const share = Number(token.dataset.surprise ?? 0) * 45;
  token.style.background = on ? `color-mix(in srgb, var(--surprise) ${share}%, transparent)` : "";
}

let hiding = null;

function showAlternatives(at, token, choose) {
  clearTimeout(hiding);
  const box = $("alternatives");
  const percent = (logprob) => (100 * Math.exp(logprob)).toFixed(1) + " %";
  const rows = token.top.map((other) => {
    const row = button("", () => {
      hideAlternatives();
      choose(other.text);
    });
    row.append(el("code", {}, visible(other.text)), el("span", {}, percent(other.logprob)));
    return row;
  });
  box.replaceChildren(el("p", {}, `“${visible(token.text)}” had ${percent(token.logprob)}`), ...rows);
  box.hidden = false;
  const { left, bottom, top } = at.getBoundingClientRect();
  const below = bottom + box.offsetHeight + 8 < innerHeight;
  box.style.left = Math.max(8, Math.min(left, innerWidth - box.offsetWidth - 8)) + "px";
  box.style.top = (below ? bottom + 4 : Math.max(8, top - box.offsetHeight - 4)) + "px";
}

/** Return a token with its spaces and line breaks made visible. */
function visible(text) {
  return text.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replace(/^ | $/g, "␣");
}

function hideSoon() {
  hiding = setTimeout(hideAlternatives, 250);
}

function hideAlternatives() {
  $("alternatives").hidden = true;
}

/** Let the arrow keys move from token to token, and the arrow down go to the alternatives. */
function moveAmongTokens(event) {
  const token = event.target.closest?.(".token");
  if (!token) return;
  const all = [...token.closest(".text").querySelectorAll(".token")];
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (step) all[all.indexOf(token) + step]?.focus();
  else if (event.key === "ArrowDown") $("alternatives").querySelector("button")?.focus();
  else return;
  event.preventDefault();
}

addEventListener("keydown", moveAmongTokens);
$("alternatives").addEventListener("mouseenter", () => clearTimeout(hiding));
$("alternatives").addEventListener("mouseleave", hideSoon);
$("alternatives").addEventListener("focusin", () => clearTimeout(hiding));
$("alternatives").addEventListener("focusout", hideSoon);
