/* Rows of radio buttons: one tab stop each, and the arrow keys choose. */
(() => {
  "use strict";
  const saeVis = (globalThis.saeVis ??= {});

  /* What a key in a row of buttons chooses: the button, or nothing. */
  saeVis.chosenByKey = (event, group) => {
    const last = group.children.length - 1;
    const at = [...group.children].indexOf(event.target.closest("button"));
    const next = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: last }[event.key];
    if (at < 0 || next === undefined || event.ctrlKey || event.metaKey || event.altKey) return null;
    event.preventDefault();
    const button = group.children[(next + last + 1) % (last + 1)];
    button.focus();
    return button;
  };

  saeVis.radioGroup = (group, choose) => {
    const chosen = (button) => button && choose(button, [...group.children].indexOf(button));
    group.addEventListener("click", (event) => chosen(event.target.closest("button")));
    group.addEventListener("keydown", (event) => chosen(saeVis.chosenByKey(event, group)));
  };

  saeVis.check = (group, isChosen) => {
    [...group.children].forEach((button, place) => {
      const chosen = isChosen(button, place);
      button.setAttribute("aria-checked", String(chosen));
      button.tabIndex = chosen ? 0 : -1;
    });
  };
})();
