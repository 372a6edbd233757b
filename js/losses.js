/* Where a page holds two effects on the loss, choose the one that underlines and hover text show. The choice is the page's:
   the root element carries it, so that it holds for every feature that is shown. */
(() => {
  "use strict";
  const saeVis = (globalThis.saeVis ??= {});
  const root = document.documentElement;

  /* "direct" or "full", if that is there. */
  saeVis.showLoss = (ablation) => {
    if (!document.querySelector(`.switch [data-loss="${ablation}"]`)) return;
    root.dataset.loss = ablation;
    saeVis.hideHover?.();
    saeVis.checkLosses();
  };

  /* The switches of what was put into the page just now. */
  saeVis.checkLosses = () => {
    if (!root.dataset.loss) return;
    for (const group of document.querySelectorAll(".switch")) {
      saeVis.check(group, (button) => button.dataset.loss === root.dataset.loss);
    }
  };

  const switchOf = (event) => event.target.closest?.(".switch");

  document.addEventListener("click", (event) => {
    const button = switchOf(event) && event.target.closest("button");
    if (button) saeVis.showLoss(button.dataset.loss);
  });
  document.addEventListener("keydown", (event) => {
    const group = switchOf(event);
    const button = group && saeVis.chosenByKey(event, group);
    if (button) saeVis.showLoss(button.dataset.loss);
  });
})();
