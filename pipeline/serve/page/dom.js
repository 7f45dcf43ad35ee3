"use strict";
// Small helpers to build the page. Text goes in as text nodes only, so no text can become markup.

const $ = (id) => document.getElementById(id);

/** Return a new element with properties and children; a string child becomes a text node. */
function el(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

/** Return a button that calls `act` when it is used. */
function button(label, act) {
  const made = el("button", { type: "button" }, label);
  made.addEventListener("click", act);
  return made;
}

/** Tell people who do not see the page. */
function say(words) {
  $("said").textContent = words;
}

/** The part of the page that scrolls. */
const scroller = () => document.querySelector("main");

/** Do what makes the page longer, and stay at its end only if the reader is there. */
function keepPlace(act) {
  const place = scroller();
  const atEnd = place.scrollHeight - place.scrollTop - place.clientHeight < 48;
  act();
  if (atEnd) place.scrollTop = place.scrollHeight;
}
