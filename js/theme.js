/* Light, dark or as the system has it, and the colours of the scales, as the reader chose them. This runs in the head, so
   that the first paint has them; the View menu (js/settings.js) offers the choices once it is there.

   Colours stand in the style sheets alone. What is dark stands in media rules, which the choice turns on or off: so every
   style sheet that has such a rule follows it. */
(() => {
  "use strict";
  const saeVis = (globalThis.saeVis ??= {});
  const root = document.documentElement;
  const DARK = /prefers-color-scheme:\s*dark/;
  const TURNED = { light: "not all", dark: "screen" };
  let rules; // the dark rules, each with its own condition

  const darkRules = () =>
    [...document.styleSheets]
      .flatMap((sheet) => [...sheet.cssRules])
      .filter((rule) => rule.media && DARK.test(rule.conditionText))
      // Paper is white, whatever the screen is.
      .map((rule) => [rule, /screen/.test(rule.conditionText) ? rule.conditionText : `screen and ${rule.conditionText}`]);

  const applyTheme = (theme) => {
    rules ??= darkRules();
    for (const [rule, own] of rules) {
      const condition = TURNED[theme] ?? own;
      if (rule.media.mediaText !== condition) rule.media.mediaText = condition;
    }
    root.style.colorScheme = theme in TURNED ? theme : "";
  };

  /* The first of each is the default. */
  const settings = [
    {
      name: "theme",
      label: "Theme",
      choices: [["system", "System"], ["light", "Light"], ["dark", "Dark"]],
      apply: applyTheme,
    },
    {
      name: "act-scale",
      label: "Activations",
      choices: [["orange", "Orange"], ["blue", "Blue"], ["viridis", "Viridis"], ["grey", "Grey"]],
      apply: (scale) => (root.dataset.actScale = scale),
    },
    {
      name: "loss-scale",
      label: "Loss",
      choices: [["blue-red", "Blue, red"], ["purple-green", "Purple, green"], ["teal-orange", "Teal, orange"]],
      apply: (scale) => (root.dataset.lossScale = scale),
    },
  ];

  /* As saeVis.storage.get has it, which is not there yet. */
  const kept = (name) => {
    try {
      return JSON.parse(localStorage.getItem(`sae_vis:view:${name}`));
    } catch {
      return null; // no storage here, or something else in it
    }
  };

  for (const { name, choices, apply } of settings) {
    const values = choices.map(([value]) => value);
    const value = kept(name);
    apply(values.includes(value) ? value : values[0]);
  }
  document.addEventListener("DOMContentLoaded", () => settings.forEach((setting) => saeVis.setting?.(setting)));
})();
