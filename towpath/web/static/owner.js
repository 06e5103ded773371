"use strict";

// The figures as they are now, every few seconds while the page is looked at.
setInterval(async () => {
  const figures = document.getElementById("figures");
  if (document.hidden || figures.contains(document.activeElement)) return;
  try {
    const response = await fetch("/owner/figures");
    if (response.ok && !response.redirected) figures.innerHTML = await response.text();
  } catch {
    return;
  }
}, 5000);
