/* The table of the reconstruction: the chosen token's row is marked, and a row chooses its token. */
(() => {
  "use strict";
  const saeVis = (globalThis.saeVis ??= {});

  const mark = (position) => {
    for (const row of document.querySelectorAll(".recon tr[data-pos]")) {
      row.classList.toggle("at", Number(row.dataset.pos) === position);
    }
  };

  document.addEventListener("sae-vis-prompt", (event) => mark(event.detail.position));
  document.addEventListener("click", (event) => {
    const row = event.target.closest?.(".recon tr[data-pos]");
    if (row) saeVis.goToToken(Number(row.dataset.pos));
  });
  document.addEventListener("DOMContentLoaded", () => mark(saeVis.data("rankings")?.position));
})();
