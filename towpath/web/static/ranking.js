"use strict";

// A partial ranking of a group's answers: [{ answer, tied }], best first.
class Ranking {
  constructor(count) {
    this.count = count;
    this.answers = [];
  }

  get done() {
    return this.count > 0 && this.answers.length === this.count;
  }

  has(answer) {
    return this.answers.some((one) => one.answer === answer);
  }

  // The rank of each answer in the order shown; equal ranks are ties, 0 is not ranked yet.
  ranks() {
    const ranks = Array(this.count).fill(0);
    this.answers.forEach(({ answer, tied }, position) => {
      ranks[answer] = tied ? ranks[this.answers[position - 1].answer] : position + 1;
    });
    return ranks;
  }

  words() {
    return this.answers.map(({ answer, tied }, position) => (position === 0 ? "" : tied ? " = " : ", ") + (answer + 1)).join("");
  }
}
