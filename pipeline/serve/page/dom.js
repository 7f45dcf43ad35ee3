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

const ICONS = {
  rename: "M3 13l.6-2.8L11 2.8l2.2 2.2-7.4 7.4L3 13zM9.6 4.2l2.2 2.2",
  delete: "M2.5 4.5h11M6 4.5v-2h4v2M4 4.5l.6 9h6.8l.6-9M6.7 7v4M9.3 7v4",
};

/** Return a button with a picture, whose words are only heard. */
function iconButton(icon, label, act) {
  const made = button("", act);
  Object.assign(made, { className: "icon", ariaLabel: label, title: label });
  const space = "http://www.w3.org/2000/svg";
  const [picture, path] = ["svg", "path"].map((tag) => document.createElementNS(space, tag));
  picture.setAttribute("viewBox", "0 0 16 16");
  picture.setAttribute("aria-hidden", "true");
  path.setAttribute("d", ICONS[icon]);
  picture.append(path);
  made.append(picture);
  return made;
}

/** Tell people who do not see the page. */
function say(words) {
  $("said").textContent = words;
}

/** Return a function that does `act` soon, however often it is called, and leaves the page time for others. */
function paced(act) {
  let waiting = null;
  let pause = 30; // milliseconds
  return () => {
    waiting ??= setTimeout(() => {
      const began = performance.now();
      waiting = null;
      act();
      pause = Math.max(30, 4 * (performance.now() - began));
    }, pause);
  };
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
