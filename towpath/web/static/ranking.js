"use strict";

// The order of a group's answers as far as it is put: [{ answer, tied }], best first.
class Ranking {
  constructor(count) {
    this.count = count;
    this.placed = [];
  }

  get done() {
    return this.count > 0 && this.placed.length === this.count;
  }

  has(answer) {
    return this.placed.some((one) => one.answer === answer);
  }

  // The place of each answer, in the order they are shown; equal places are ties, 0 is not placed yet.
  places() {
    const found = Array(this.count).fill(0);
    this.placed.forEach(({ answer, tied }, position) => {
      found[answer] = tied ? found[this.placed[position - 1].answer] : position + 1;
    });
    return found;
  }

  words() {
    return this.placed.map(({ answer, tied }, position) => (position === 0 ? "" : tied ? " = " : ", ") + (answer + 1)).join("");
  }
}
