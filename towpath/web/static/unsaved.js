"use strict";

// The list of items that could not be saved, each with the reason and actions.
class UnsavedList {
  constructor(outbox, announce) {
    this.outbox = outbox;
    this.announce = announce;
    this.dialog = document.getElementById("unsaved-dialog");
    this.list = document.getElementById("unsaved-list");
    this.button = document.getElementById("unsaved");
  }

  show(items) {
    this.button.hidden = !items.length;
    this.button.textContent = `Could not be saved: ${items.length} ${items.length === 1 ? "item" : "items"}`;
    if (this.dialog.open) this.fill();
  }

  fill() {
    const items = this.outbox.unsaved();
    this.list.replaceChildren(...items.map((item) => this.row(item)));
    if (!items.length) this.dialog.close("");
  }

  row(item) {
    const row = document.createElement("li");
    const head = document.createElement("p");
    head.textContent = item.what;
    const why = document.createElement("small");
    why.textContent = item.reason;
    const ends = document.createElement("p");
    ends.className = "ends";
    for (const [words, work] of Object.entries({ "Try again": () => this.again(item), Copy: () => this.copy(item), Discard: () => this.outbox.discard(item.name) })) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = words;
      button.addEventListener("click", async () => {
        await work();
        this.show(this.outbox.unsaved());
      });
      ends.append(button);
    }
    row.append(head, why, ends);
    return row;
  }

  async again(item) {
    try {
      await this.outbox.retry(item.name);
      this.announce(`Saved: ${item.what}`);
    } catch (error) {
      this.announce(`Not saved: ${item.what}. ${error.message}`);
    }
  }

  async copy(item) {
    const text = [item.what, item.body.text ?? "", item.body.reason ?? ""].filter(Boolean).join("\n\n");
    try {
      await navigator.clipboard.writeText(text);
      this.announce("Copied.");
    } catch {
      const box = document.createElement("textarea");
      box.value = text;
      this.dialog.append(box);
      box.select();
      this.announce(document.execCommand("copy") ? "Copied." : "This browser does not allow copying.");
      box.remove();
    }
  }
}
