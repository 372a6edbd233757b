/* The reader's own settings: a small "View" menu in the top bar, filled by whoever registers an option. What is chosen is kept
   in the browser's storage, where there is one that works.

   saeVis.setting({ name, label, choices: [[value, label], …], apply, title }) adds a row of choices, of which the first is the
   default. apply(value) is called at once, when another is chosen, and whenever something new is on the page.
   saeVis.viewAction({ label, run, group, title }) adds a button. saeVis.onShown(listener) is for what has to look at new content. */
(() => {
  "use strict";
  const saeVis = (globalThis.saeVis ??= {});
  const settings = new Map(); // name -> the setting, its value, its row of buttons
  const listeners = [];
  let button, panel, told = false;

  /* --- storage, which may be missing, full, or throw when it is touched, as in some frames --- */

  saeVis.storage = {
    get: (key) => {
      try {
        return JSON.parse(localStorage.getItem(`sae_vis:${key}`)) ?? null;
      } catch {
        return null;
      }
    },
    /* Whether it is kept. */
    set: (key, value) => {
      try {
        if (value === null) localStorage.removeItem(`sae_vis:${key}`);
        else localStorage.setItem(`sae_vis:${key}`, JSON.stringify(value));
        return true;
      } catch {
        return false;
      }
    },
  };

  /* --- what is on the page has changed --- */

  /* The listener is called when the page is there, and each time that a feature or other columns are shown. */
  saeVis.onShown = (listener) => {
    listeners.push(listener);
    if (told) listener();
  };
  saeVis.tellShown = () => {
    told = true;
    for (const { apply, value } of settings.values()) apply(value);
    for (const listener of listeners) listener();
  };

  /* --- the menu --- */

  const { element } = saeVis;

  /* The place in the top bar for buttons that work with scripts only. */
  saeVis.tools = () => {
    const top = document.querySelector("header.top");
    let tools = top?.querySelector(".tools");
    if (top && !tools) top.append((tools = element("div", { class: "tools" })));
    return tools;
  };

  const menu = () => {
    if (panel || !saeVis.tools()) return panel;
    button = element("button", { type: "button", class: "view-button", "aria-expanded": "false", "aria-haspopup": "dialog" }, "View");
    panel = element("div", { class: "view-panel", role: "dialog", "aria-label": "View", hidden: "" });
    saeVis.tools().append(element("div", { class: "view-menu" }, button, panel));
    button.addEventListener("click", () => open(panel.hidden));
    panel.parentElement.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && !panel.hidden && !event.defaultPrevented) {
        event.preventDefault();
        open(false);
        button.focus();
      }
    });
    panel.parentElement.addEventListener("focusout", (event) => {
      if (event.relatedTarget && !panel.parentElement.contains(event.relatedTarget)) open(false);
    });
    document.addEventListener("pointerdown", (event) => {
      if (!panel.hidden && !panel.parentElement.contains(event.target)) open(false);
    });
    return panel;
  };

  const open = (wanted) => {
    panel.hidden = !wanted;
    button.setAttribute("aria-expanded", String(wanted));
    if (!wanted) return;
    saeVis.hideHover?.();
    panel.style.translate = "none";
    const { left, right } = panel.getBoundingClientRect();
    panel.style.translate = `${Math.round(Math.max(8 - left, Math.min(0, innerWidth - 8 - right)))}px 0`; // never outside the window
    panel.querySelector('[aria-checked="true"]')?.focus();
  };

  const row = ({ name, label, choices, title }) => {
    const buttons = choices.map(([value, text]) =>
      element("button", { type: "button", role: "radio", "data-value": value }, text),
    );
    const group = element("div", { role: "radiogroup", "aria-label": label, "data-setting": name }, ...buttons);
    const line = element("div", { class: "view-row" }, element("span", {}, label), group);
    if (title) line.title = title;
    saeVis.radioGroup(group, (chosen) => saeVis.choose(name, chosen.dataset.value));
    return line;
  };

  const check = (name) => {
    const { value, line } = settings.get(name);
    if (line) saeVis.check(line.lastElementChild, (choice) => choice.dataset.value === value);
  };

  /* --- registering --- */

  /* Add an option to the menu; call it when the document is there (DOMContentLoaded) or later. */
  saeVis.setting = (setting) => {
    const values = setting.choices.map(([value]) => value);
    const kept = saeVis.storage.get(`view:${setting.name}`);
    const value = values.includes(kept) ? kept : values[0];
    const line = row(setting);
    settings.set(setting.name, { ...setting, value, line });
    const place = menu();
    place?.insertBefore(line, place.querySelector(":scope > .view-actions"));
    check(setting.name);
    setting.apply(value);
  };

  /* Choose, as the menu does; whether there is such a choice. */
  saeVis.choose = (name, value) => {
    const setting = settings.get(name);
    if (!setting?.choices.some(([known]) => known === value)) return false;
    setting.value = value;
    saeVis.storage.set(`view:${name}`, value);
    check(name);
    saeVis.hideHover?.();
    setting.apply(value);
    return true;
  };

  saeVis.chosen = (name) => settings.get(name)?.value ?? null;

  /* Add a button to the end of the menu, beside others of the same group. */
  saeVis.viewAction = ({ label, run, group = "", title = "" }) => {
    const place = menu();
    if (!place) return;
    let actions = [...place.querySelectorAll(":scope > .view-actions")].find((found) => found.dataset.group === group);
    if (!actions) place.append((actions = element("div", { class: "view-actions", "data-group": group }, element("span", {}, group))));
    const made = element("button", { type: "button", ...(title && { title }) }, label);
    made.addEventListener("click", () => run(made));
    actions.append(made);
  };

  document.addEventListener("DOMContentLoaded", () => queueMicrotask(saeVis.tellShown));
})();
