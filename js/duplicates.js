/* Hide the examples that nearly repeat another one, in every feature that is shown: the root element carries the choice. */
(() => {
  "use strict";
  const root = document.documentElement;
  root.dataset.scripts = "on";
  const hidden = () => root.dataset.dups === "hidden";

  const check = () => {
    for (const button of document.querySelectorAll(".hide-dups")) button.setAttribute("aria-pressed", String(hidden()));
  };

  document.addEventListener("click", (event) => {
    if (!event.target.closest?.(".hide-dups")) return;
    if (hidden()) delete root.dataset.dups;
    else root.dataset.dups = "hidden";
    check();
  });
  document.addEventListener("saevis:shown", check); // another feature's panels are there
})();
