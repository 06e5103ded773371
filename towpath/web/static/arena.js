"use strict";

// Refresh the arena every few seconds while the page is visible; reload it when the arena has ended.
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
  const state = record.firstElementChild.dataset;
  if (verdict.textContent !== state.sentence) verdict.textContent = state.sentence;
  if (state.state !== "open") location.reload();
}, 3000);
