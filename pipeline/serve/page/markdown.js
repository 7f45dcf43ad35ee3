"use strict";
// Markdown as models write it, as plain data: a text has blocks, and the text of a block has parts.
// HTML is text. A link or an image is its words and its address: nothing can be clicked or loaded.
// Each line is read once for each level, and levels are few, so that the time grows with the text only.

const DEEPEST = 10; // levels of lists and quotes; deeper ones are text
const FENCE = /^\s*(`{3,}|~{3,})([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?=\s|$)/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])(\s+|$)/;
const DELIMITERS = /^[\s|:-]+$/;

const isEmpty = (line) => !line.trim();
const isRule = (line) => /^ {0,3}[-*_]/.test(line) && /^([-*_])\1\1+$/.test(line.replace(/\s/g, ""));
const isOrdered = (item) => item[2].length > 1;

/** Return the columns of white space before a line. */
function indentOf(line) {
  let columns = 0;
  for (const one of line) {
    if (one === "\t") columns += 4 - (columns % 4);
    else if (one === " ") columns += 1;
    else break;
  }
  return columns;
}

/** Return a line without white space in its first `columns`. */
function outdented(line, columns) {
  const indent = indentOf(line);
  return " ".repeat(Math.max(0, indent - columns)) + line.replace(/^[ \t]+/, "");
}

/** Return the cells of a table's row. */
function cellsOf(line) {
  const cells = line.trim().split(/(?<!\\)\|/);
  if (!cells[0]) cells.shift();
  if (cells.length && !cells.at(-1)) cells.pop();
  return cells.map((cell) => cell.trim().replaceAll("\\|", "|"));
}

function isTable(lines, at) {
  const [head, under] = [lines[at], lines[at + 1]];
  if (!under?.includes("-") || !under.includes("|") || !head.includes("|") || !DELIMITERS.test(under)) return false;
  return cellsOf(head).length === cellsOf(under).length;
}

/** Return whether a line ends the paragraph before it. As a list, only 1. does: "in\n1986. A year". */
function interrupts(lines, at) {
  const line = lines[at];
  const item = ITEM.exec(line);
  if (item && !isEmpty(line.slice(item[0].length)) && (!isOrdered(item) || Number.parseInt(item[2], 10) === 1)) return true;
  return HEADING.test(line) || QUOTE.test(line) || FENCE.test(line) || isRule(line) || isTable(lines, at);
}

/** Return the blocks of some lines. Each has its lines: from number `from` to before number `to`. */
function blocksOf(lines, depth = 0) {
  const blocks = [];
  for (let at = 0; at < lines.length; ) {
    if (isEmpty(lines[at])) {
      at += 1;
      continue;
    }
    blocks.push({ from: at, ...blockAt(lines, at, depth) });
    at = blocks.at(-1).to;
  }
  return blocks;
}

function blockAt(lines, at, depth) {
  const line = lines[at];
  const fence = FENCE.exec(line);
  if (fence) return codeAt(lines, at, fence);
  const heading = HEADING.exec(line);
  if (heading) return { kind: "heading", level: heading[1].length, text: line.slice(heading[0].length).trim(), to: at + 1 };
  if (isRule(line)) return { kind: "rule", to: at + 1 };
  if (isTable(lines, at)) return tableAt(lines, at);
  if (depth < DEEPEST && QUOTE.test(line)) return quoteAt(lines, at, depth);
  if (depth < DEEPEST && ITEM.test(line)) return listAt(lines, at, depth);
  let to = at + 1;
  while (to < lines.length && !isEmpty(lines[to]) && !interrupts(lines, to)) to += 1;
  return { kind: "paragraph", text: lines.slice(at, to).join("\n"), to };
}

/** A code block reaches to its closing fence, or to the end. */
function codeAt(lines, at, [opening, mark, info]) {
  const closes = (line) => line.startsWith(mark) && line === mark[0].repeat(line.length);
  let to = at + 1;
  while (to < lines.length && !closes(lines[to].trim())) to += 1;
  const indent = indentOf(opening);
  const code = lines.slice(at + 1, to).map((line) => (indent ? outdented(line, indent) : line));
  return { kind: "code", language: info.trim().split(/\s/, 1)[0], text: code.join("\n"), to: Math.min(to + 1, lines.length) };
}

function tableAt(lines, at) {
  const head = cellsOf(lines[at]);
  const aligns = cellsOf(lines[at + 1]).map((cell) => (cell.endsWith(":") ? (cell.startsWith(":") ? "center" : "end") : ""));
  let to = at + 2;
  while (to < lines.length && lines[to].includes("|")) to += 1;
  const rows = lines.slice(at + 2, to).map((line) => cellsOf(line).slice(0, head.length));
  return { kind: "table", head, aligns, rows, to };
}

function quoteAt(lines, at, depth) {
  let to = at + 1;
  while (to < lines.length && QUOTE.test(lines[to])) to += 1;
  return { kind: "quote", blocks: blocksOf(lines.slice(at, to).map((line) => line.replace(QUOTE, "")), depth + 1), to };
}

/** A list reaches to the first line that is no item and not indented, after a blank line. */
function listAt(lines, at, depth) {
  const first = ITEM.exec(lines[at]);
  const items = [];
  let to = at;
  for (let item = first; item && isOrdered(item) === isOrdered(first) && !isRule(lines[to]); item = ITEM.exec(lines[to] ?? "")) {
    const end = endOfItem(lines, to, indentOf(lines[to]) + 2);
    const [start, ...rest] = lines.slice(to, end);
    const width = indentOf(start) + item[2].length + 1;
    items.push(blocksOf([start.slice(item[0].length), ...rest.map((line) => outdented(line, width))], depth + 1));
    to = end;
  }
  return { kind: "list", start: isOrdered(first) ? Number.parseInt(first[2], 10) : null, items, to };
}

/** Return the line after an item. Its further lines are indented, or continue its paragraph. */
function endOfItem(lines, at, least) {
  let end = at + 1;
  for (let next = end; next < lines.length; next += 1) {
    if (isEmpty(lines[next])) continue;
    const goesOn = next === end && !ITEM.test(lines[next]) && !interrupts(lines, next);
    if (indentOf(lines[next]) < least && !goesOn) return ITEM.test(lines[next]) ? next : end;
    end = next + 1;
  }
  return end;
}
