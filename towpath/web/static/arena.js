"use strict";

// The record as it is now, every few seconds while the page is looked at; when the arena has ended the page is loaded once more.
const record = document.getElementById("arena");
const verdict = document.getElementById("verdict");

setInterval(async () => {
  if (document.hidden || record.contains(document.activeElement)) return;
  try {
    const response = await fetch(record.dataset.live);
    if (!response.ok || response.redirected) return;
    record.innerHTML = await response.text();
  } catch {
    return;
  }
  const now = record.firstElementChild.dataset;
  if (verdict.textContent !== now.sentence) verdict.textContent = now.sentence;
  if (now.state !== "open") location.reload();
}, 3000);
