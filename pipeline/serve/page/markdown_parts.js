"use strict";
// The text of a block of Markdown: words, code, emphasis, and the addresses of links and images.

const MOST_MARKS = 3; // ***both***; more are text
const MARK = /\\[\\`*_~#|<>+.!-]|`+|\*+|_+|~~|!?\[/g;
// The limits bound the search at each bracket.
const LINK = /(!?)\[([^[\]]{0,1000})\]\(\s{0,9}([^\s()]{1,2000}(?:\([^\s()]{0,1000}\)[^\s()]{0,1000})?)(?:\s{1,9}"[^"]{0,500}")?\s{0,9}\)/y;
const KINDS = { "*": "em", _: "em", "**": "strong", __: "strong", "~~": "s" };
const WORD = /[\p{L}\p{N}]/u;

/** Return the parts of a text: {text}, {code}, {address}, {open} and {close} with the name of an element. */
function partsOf(text) {
  const parts = [];
  const open = []; // marks that may be closed: {mark, at}, one of each kind at most
  const ends = endsOfCode(text);
  let done = 0;
  const until = (at) => at > done && parts.push({ text: text.slice(done, at) });
  MARK.lastIndex = 0;
  for (let found = MARK.exec(text); found; found = MARK.exec(text)) {
    const [mark] = found;
    const at = found.index;
    let next = at + mark.length;
    if (mark[0] === "`") {
      const end = ends(mark.length, next);
      if (end === undefined) continue;
      until(at);
      parts.push({ code: trimmedCode(text.slice(next, end)) });
      next = end + mark.length;
    } else if (mark.endsWith("[")) {
      LINK.lastIndex = at;
      const link = LINK.exec(text);
      if (!link) continue;
      until(at);
      next = LINK.lastIndex;
      parts.push(...linkOf(link));
    } else {
      until(at);
      if (mark[0] === "\\") parts.push({ text: mark[1] });
      else addMarks(parts, open, mark, text[at - 1] ?? " ", text[next] ?? " ");
    }
    done = MARK.lastIndex = next;
  }
  until(text.length);
  return parts;
}

/** Return a function that finds the end of code that starts with `size` backticks. It is asked in order. */
function endsOfCode(text) {
  const places = new Map();
  for (const { 0: run, index } of text.matchAll(/`+/g)) {
    if (!places.has(run.length)) places.set(run.length, { all: [], first: 0 });
    places.get(run.length).all.push(index);
  }
  return (size, from) => {
    const found = places.get(size);
    while (found.all[found.first] < from) found.first += 1;
    return found.all[found.first];
  };
}

/** A space on both sides allows code to start with a backtick. */
function trimmedCode(code) {
  return code.startsWith(" ") && code.endsWith(" ") && code.trim() ? code.slice(1, -1) : code;
}

/** Return the parts of a link or an image. Its words are not said twice if they are its address. */
function linkOf([, image, words, address]) {
  const shown = words || (image ? "image" : "");
  if (!shown || shown === address) return [{ address }];
  const inner = image ? [{ text: shown }] : partsOf(shown);
  return [...inner, { text: " (" }, { address }, { text: ")" }];
}

/** Add the marks of emphasis between two characters: they close what is open, or open, or are text. */
function addMarks(parts, open, run, before, after) {
  if (run.length > MOST_MARKS) return parts.push({ text: run });
  const word = run[0] === "_"; // snake_case has no emphasis
  const closes = /\S/.test(before) && !(word && WORD.test(after));
  const opens = /\S/.test(after) && !(word && WORD.test(before));
  let rest = run;
  while (rest) {
    const known = closes ? lastOf(open, rest) : -1;
    if (known >= 0) {
      const { mark, at } = open[known];
      parts[at] = { open: KINDS[mark] };
      parts.push({ close: KINDS[mark] });
      open.length = known; // what was opened within, and not closed, stays text
      rest = rest.slice(mark.length);
    } else if (opens) {
      const mark = rest.slice(0, 2);
      const same = open.findIndex((one) => one.mark === mark);
      if (same >= 0) open.splice(same, 1); // it stays text
      open.push({ mark, at: parts.push({ text: mark }) - 1 });
      rest = rest.slice(mark.length);
    } else break;
  }
  if (rest) parts.push({ text: rest });
}

/** Return the place of the open mark that a run closes: one as long, or else the last that is shorter. */
function lastOf(open, run) {
  const same = open.findLastIndex(({ mark }) => mark === run);
  return same >= 0 ? same : open.findLastIndex(({ mark }) => run.startsWith(mark));
}
