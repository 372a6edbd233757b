/* How sequences are read: tokens joined to characters or each by itself, whitespace as marks or as it is, colours by the
   feature's largest activation or by each sequence's own. The first of each is what the page holds; the others are made here. */
(() => {
  "use strict";
  const saeVis = (globalThis.saeVis ??= {});
  const root = document.documentElement;
  const own = new WeakMap(); // token -> the html that it came with
  const changed = new WeakSet(); // panels that do not look as they came
  const as = { tokens: "joined", whitespace: "visible", scale: "feature" };

  /* --- tokens --- */

  const dress = (panel) => {
    const asItCame = as.tokens === "joined" && as.whitespace === "visible";
    if (asItCame && !changed.has(panel)) return;
    const data = saeVis.panelData(panel);
    data.sequences.forEach((sequence, number) => {
      [...sequence.children].forEach((token, inside) => {
        if (!own.has(token)) own.set(token, token.innerHTML);
        const html = as.tokens === "raw" ? saeVis.tokenHtml(data.ids[data.offsets[number] + inside]) : own.get(token);
        if (changed.has(panel) || html !== own.get(token)) token.innerHTML = html;
        saeVis.dressWhitespace(token);
      });
    });
    changed.add(panel);
  };

  /* The marks of what was made a moment ago, where the reader wants none. */
  saeVis.dressWhitespace = (place) => {
    if (as.whitespace === "visible") return;
    for (const mark of place.querySelectorAll("i")) mark.textContent = saeVis.whitespace(mark.textContent);
  };

  /* --- colours --- */

  const scale = (panel) => {
    const data = saeVis.panelData(panel);
    data.sequences.forEach((sequence, number) => {
      const acts = data.acts.slice(data.offsets[number], data.offsets[number] + data.lengths[number]);
      const largest = Math.max(...acts);
      acts.forEach((act, place) => {
        if (act > 0) sequence.children[place].style.setProperty("--sa", (act / largest).toFixed(3));
      });
    });
  };

  const legends = () => {
    for (const key of document.querySelectorAll(".key-act")) {
      key.dataset.largest ??= key.lastChild.textContent;
      key.lastChild.textContent = as.scale === "sequence" ? "each sequence\u2019s largest" : key.dataset.largest;
    }
  };

  /* --- all that is on the page --- */

  const panels = () => [...document.querySelectorAll(".seqs")].filter((panel) => panel.querySelector(".seq"));
  const wanted = (name, value) => {
    as[name] = value;
    root.dataset[name] = value;
  };

  const start = () => {
    if (!document.querySelector(".prompt-columns, main .feature")) return;
    const dressAll = (name) => (value) => {
      wanted(name, value);
      panels().forEach(dress);
      saeVis.redrawRows();
    };
    saeVis.setting({
      name: "tokens",
      label: "Tokens",
      title: "Tokens that are only part of a character: joined to the character, or each by itself as bytes",
      choices: [["joined", "joined"], ["raw", "raw"]],
      apply: dressAll("tokens"),
    });
    saeVis.setting({
      name: "whitespace",
      label: "Whitespace",
      title: "Spaces at the ends of tokens, newlines and tabs: as marks, or as they are",
      choices: [["visible", "visible \u00b7\u2009\u21b5"], ["natural", "natural"]],
      apply: dressAll("whitespace"),
    });
    saeVis.setting({
      name: "scale",
      label: "Colour scale",
      title: "The strongest colour: the feature\u2019s largest activation, or the largest of each sequence",
      choices: [["feature", "by feature"], ["sequence", "by sequence"]],
      apply: (value) => {
        wanted("scale", value);
        if (value === "sequence") panels().forEach(scale);
        legends();
        saeVis.redrawRows();
      },
    });
  };

  document.addEventListener("DOMContentLoaded", start);
})();
