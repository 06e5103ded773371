"use strict";

// Refresh the statistics every few seconds while the page is visible.
setInterval(async () => {
  const stats = document.getElementById("stats");
  if (document.hidden || stats.contains(document.activeElement)) return;
  try {
    const response = await fetch("/owner/stats");
    if (response.ok && !response.redirected) stats.innerHTML = await response.text();
  } catch {
    return;
  }
}, 5000);
