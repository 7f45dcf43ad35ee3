"use strict";
// The conversation as a tree. A turn has versions of its answers, and each of these is followed by
// versions of the next question. Nothing is dropped: what is not shown is another branch.

/** Return answers that no question follows yet. `at` is the following turn that is shown. */
function newVersion(answers) {
  return { answers, turns: [], at: 0 };
}

/** A question, or the beginning of a text, with all versions of its answers. */
class Turn {
  constructor(under, mode, question) {
    Object.assign(this, { under, mode, question, versions: [], at: 0 });
  }

  /** The version that is shown. */
  get version() {
    return this.versions[this.at];
  }

  /** The answers that are shown: one, or two next to each other. */
  get answers() {
    return this.version?.answers ?? [];
  }
}

/** Return the turns that are shown: the chosen version of each question and of its answers. */
function branch(root) {
  const turns = [];
  for (let version = root; version?.turns.length; version = turns.at(-1).version) {
    turns.push(version.turns[version.at]);
  }
  return turns;
}

/** Add a question under some answers, and show it. */
function addTurn(under, mode, question) {
  const turn = new Turn(under, mode, question);
  under.at = under.turns.push(turn) - 1;
  return turn;
}

/** Add a version of the answers to a turn, and show it. */
function addVersion(turn, answers) {
  turn.at = turn.versions.push(newVersion(answers)) - 1;
}

/** Return each turn of the tree with the place that it follows: null, or the numbers of turn and version. */
function allTurns(root) {
  const found = [];
  const open = [[root, null]];
  for (const [version, after] of open) {
    for (const turn of version.turns) {
      const number = found.push({ turn, after }) - 1;
      turn.versions.forEach((next, which) => open.push([next, [number, which]]));
    }
  }
  return found;
}
