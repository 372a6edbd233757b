/* The keys of the page, in one list: what they do, and the help that says so ("?").

   saeVis.key({ keys, description, view, run }) adds one; run(event) is called for any of the keys (names as in
   KeyboardEvent.key) and may give false where it has nothing to do. One without run is only listed: some element has it
   for itself. Keys never act while somebody types, in a dialog or a menu, with Ctrl, Alt or Meta, or where an element has used
   them.

   saeVis.onEscape(hide) is for what only floats over the page: Escape hides that before it closes anything. hide() says whether
   there was something. */
(() => {
  "use strict";
  const saeVis = (globalThis.saeVis ??= {});
  const known = [];
  const floating = [];
  const NAMES = { ArrowLeft: "←", ArrowRight: "→", ArrowUp: "↑", ArrowDown: "↓", Escape: "Esc", " ": "Space" };
  const TYPED = "input, textarea, select, [contenteditable]";
  const TYPING = `${TYPED}, dialog, [role=dialog], [role=menu]`;
  const EVERYWHERE = "Everywhere";
  let help;

  saeVis.key = (key) => known.push(key);
  saeVis.onEscape = (hide) => floating.push(hide);

  /* Before any other listener sees the key, which does no more then, but in a field that is left with it. */
  const escaped = (event) => {
    if (event.key !== "Escape" || event.isComposing) return;
    const hidden = floating.filter((hide) => hide()).length > 0;
    if (hidden && !event.target.closest?.(TYPED)) event.preventDefault();
  };

  const pressed = (event) => {
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    if (event.shiftKey && event.key.length > 1) return;
    if (event.target.closest?.(TYPING) || document.querySelector("dialog[open]")) return;
    for (const { keys, run } of known) {
      if (run && keys.includes(event.key) && run(event) !== false) return event.preventDefault();
    }
  };

  /* --- the help --- */

  const element = (saeVis.element = (tag, attributes, ...children) => {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  });

  const line = ({ keys, description }) =>
    element("div", {}, element("dt", {}, ...keys.map((key) => element("kbd", {}, NAMES[key] ?? key))), element("dd", {}, description));

  const fill = () => {
    const views = new Map();
    for (const key of known) views.set(key.view, [...(views.get(key.view) ?? []), key]);
    const everywhere = views.get(EVERYWHERE); // last, whoever came first
    views.delete(EVERYWHERE);
    views.set(EVERYWHERE, everywhere);
    const close = element("button", { type: "button", "aria-label": "Close" }, "×");
    close.addEventListener("click", () => help.close());
    help.replaceChildren(
      element("header", {}, element("h2", {}, "Keys"), close),
      ...[...views].flatMap(([view, keys]) => [element("h3", {}, view), element("dl", {}, ...keys.map(line))]),
    );
  };

  const openHelp = () => {
    if (!help) {
      help = element("dialog", { class: "help", "aria-label": "Keys" });
      help.addEventListener("click", (event) => event.target === help && help.close()); // beside it
      help.addEventListener("keydown", (event) => event.stopPropagation()); // its keys are not the page's
      document.body.append(help);
    }
    saeVis.hideHover?.();
    fill();
    help.showModal(); // which keeps the focus inside, and gives it back
  };

  /* --- what every page has --- */

  const skip = () => {
    const main = [...document.querySelectorAll("main, [role=main]")].find((one) => one.getClientRects().length); // the other is hidden
    main.tabIndex = -1;
    main.focus();
    main.scrollIntoView();
  };

  const start = () => {
    const top = document.querySelector("header.top");
    if (!top || !document.querySelector("main")) return;
    const skipper = element("button", { type: "button", class: "skip" }, "Skip to the content");
    skipper.addEventListener("click", skip);
    top.prepend(skipper);
    saeVis.onShown?.(() => {
      if (top.querySelector(".help-button")) return;
      const button = element("button", { type: "button", class: "help-button", "aria-label": "Keys", "aria-haspopup": "dialog", title: "Keys (?)" }, "?");
      button.addEventListener("click", openHelp);
      saeVis.tools().append(button);
    });
    if (document.querySelector('[role="radiogroup"]')) {
      saeVis.key({ keys: ["ArrowLeft", "ArrowRight"], description: "Choose the one before or after", view: "In a row of choices" });
    }
    if (document.querySelector(".seq, script[data-packed]")) {
      const view = "In an example";
      saeVis.key({ keys: ["Tab"], description: "Go to the next example", view });
      saeVis.key({ keys: ["ArrowLeft", "ArrowRight"], description: "Read from token to token", view });
      saeVis.key({ keys: ["Home", "End"], description: "First and last token", view });
      if (saeVis.hasRows?.()) saeVis.key({ keys: ["Enter"], description: "Show its whole row, or hide it", view });
      if (saeVis.copied) saeVis.key({ keys: ["m"], description: "Open its menu, to copy it", view });
      saeVis.key({ keys: ["Escape"], description: "Hide the hover text", view });
    }
  };

  saeVis.focusHeading = (place) => {
    const heading = place.querySelector("h2");
    if (!heading) return;
    heading.tabIndex = -1;
    heading.focus();
  };

  /* Replace what is in an element; if the focus was in there, the new heading has it. */
  saeVis.replaceContent = (place, html) => {
    const hadFocus = place.contains(document.activeElement) && document.activeElement !== place;
    place.innerHTML = html;
    if (hadFocus) saeVis.focusHeading(place);
  };

  saeVis.key({ keys: ["?"], description: "Show the keys", view: EVERYWHERE, run: openHelp });
  window.addEventListener("keydown", escaped, true);
  window.addEventListener("keydown", pressed); // after every listener of an element or of the document
  document.addEventListener("DOMContentLoaded", start);
})();
