"use strict";
// Markdown on the page: an element for each block. All text goes in as text nodes.

const SETTLING = 2; // blocks at the end that further text may still change

/** The Markdown of an answer. As its text grows, only the blocks at its end are made anew. */
class Rendered {
  constructor() {
    this.root = el("div", { className: "markdown" });
    this.from = 0; // where the text of `open` begins
    this.open = []; // the last blocks: {block, source, node}
  }

  /** Show a text that begins with the one before. */
  grow(text) {
    const lines = text.slice(this.from).split("\n");
    const before = this.open;
    this.open = blocksOf(lines).map((block, number) => {
      const source = lines.slice(block.from, block.to).join("\n");
      const old = before[number];
      if (old?.source === source && old.block.kind === block.kind) return { ...old, block };
      if (old && growCode(old, block)) return { block, source, node: old.node };
      const node = blockElement(block);
      if (old) old.node.replaceWith(node);
      else this.root.append(node);
      return { block, source, node };
    });
    for (const { node } of before.slice(this.open.length)) node.remove();
    this.settle(lines);
  }

  /** Let go of the blocks that no further text can change. */
  settle(lines) {
    const settled = this.open.length - SETTLING;
    if (settled <= 0) return;
    this.open.splice(0, settled);
    for (const line of lines.slice(0, this.open[0].block.from)) this.from += line.length + 1;
  }
}

/** Add to a code block what is new of it, so that its button stays. Return whether that was possible. */
function growCode({ block: old, node }, block) {
  if (block.kind !== "code" || old.kind !== "code" || old.language !== block.language) return false;
  if (!block.text.startsWith(old.text)) return false;
  node.querySelector("code").firstChild.appendData(block.text.slice(old.text.length));
  return true;
}

function blockElement(block) {
  return BLOCKS[block.kind](block);
}

const BLOCKS = {
  paragraph: ({ text }) => textElement("p", text),
  // A model may begin with any level, and the outline of the page must not skip one.
  heading: ({ level, text }) => textElement("h2", text, { className: `level${level}` }),
  rule: () => el("hr"),
  quote: ({ blocks }) => el("blockquote", { dir: "auto" }, ...blocks.map(blockElement)),
  list: ({ start, items }) => {
    const kind = start === null ? el("ul", { dir: "auto" }) : el("ol", { dir: "auto", start });
    kind.append(...items.map((blocks) => el("li", { dir: "auto" }, ...blocks.map(blockElement))));
    return kind;
  },
  code: ({ language, text }) => {
    const code = el("code", {}, document.createTextNode(text));
    const bar = el("div", { className: "bar" }, el("span", {}, language));
    bar.append(button("Copy", (event) => copy(code.textContent, event.currentTarget)));
    // It scrolls sideways, so that the keyboard must reach it.
    const place = el("pre", { dir: "ltr", tabIndex: 0, role: "group", ariaLabel: `Code ${language}`.trim() }, code);
    return el("div", { className: "code" }, bar, place);
  },
  table: ({ head, aligns, rows }) => {
    const row = (cells, tag) => el("tr", {}, ...cells.map((text, column) => cell(text, text ? tag : "td", aligns[column])));
    const table = el("table", {}, el("thead", {}, row(head, "th")), el("tbody", {}, ...rows.map((cells) => row(cells, "td"))));
    return el("div", { className: "table", tabIndex: 0, role: "group", ariaLabel: "Table" }, table);
  },
};

function cell(text, tag, align) {
  const made = textElement(tag, text);
  made.style.textAlign = align;
  return made;
}

/** Return an element with the parts of a text. */
function textElement(tag, text, properties = {}) {
  const made = el(tag, { dir: "auto", ...properties });
  const open = [made];
  let words = ""; // many marks that are only text would be many nodes
  const flush = () => {
    if (words) open.at(-1).append(words);
    words = "";
  };
  for (const part of partsOf(text)) {
    if (part.text !== undefined) {
      words += part.text;
      continue;
    }
    flush();
    if (part.open) open.push(el(part.open));
    else if (part.close) {
      const inner = open.pop();
      open.at(-1).append(inner);
    } else if (part.code !== undefined) open.at(-1).append(el("code", {}, part.code));
    else open.at(-1).append(el("span", { className: "address", dir: "ltr" }, part.address));
  }
  flush();
  return made;
}
