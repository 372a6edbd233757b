/* The feature-centric page: choose a feature by number, label, arrow keys, link or location hash (#feature=8). */
(() => {
  "use strict";
  const saeVis = (globalThis.saeVis ??= {});
  const MOST_CHOICES = 60;
  let index, place, shown, latest = 0, elements;
  const plain = new Map(); // feature -> HTML of what was in the page from the start
  const near = new Map(); // feature -> HTML of a neighbour

  const start = () => {
    index = saeVis.data("index");
    index.ids ??= index.ranges.flatMap(([low, high]) => Array.from({ length: high - low + 1 }, (_, more) => low + more));
    place = document.querySelector(".shown-feature");
    const first = place.querySelector(".feature");
    if (!first) return;
    shown = Number(first.dataset.feature);
    plain.set(shown, place.innerHTML);
    document.addEventListener("click", followLink);
    if (index.ids.length < 2) return;
    document.addEventListener("keydown", arrowKeys);
    addKeys();
    document.querySelector(".previous").addEventListener("click", () => step(-1));
    document.querySelector(".next").addEventListener("click", () => step(1));
    const choose = document.querySelector(".choose");
    const choices = document.querySelector(".choices");
    choices.id ||= saeVis.newId("choices");
    choose.setAttribute("list", choices.id);
    choose.addEventListener("focus", () => choose.select());
    choose.addEventListener("input", offerChoices);
    choose.addEventListener("change", () => ask(choose.value));
    window.addEventListener("hashchange", followHash);
    update();
    followHash();
    if (!saeVis.canInflate) saeVis.say(saeVis.cannotInflate);
    window.addEventListener("load", () => saeVis.overview?.visible || lookAhead(index.ids.indexOf(shown)));
  };

  /* What a site has in a file of its own is there a little later. */
  const labels = () => saeVis.allLabels?.() ?? saeVis.labels ?? index.labels;

  /* --- asking for a feature --- */

  const followHash = () => {
    const asked = /^#feature=(.*)$/.exec(location.hash)?.[1];
    const opens = saeVis.overview?.root.dataset.opens;
    if (asked === "first") show(String([...plain.keys()][0])); // what is in the page from the start
    else if (asked !== undefined) show(asked);
    else if (opens === "feature" && !location.hash) show(String([...plain.keys()][0]));
    else if (opens) showOverview();
  };

  const showOverview = () => {
    latest++; // what was asked for before is not wanted any more
    saeVis.say("");
    saeVis.overview.show();
    document.title = `Overview · ${index.title}`;
  };

  /* A plain link to "#..." would unload a notebook's frame, so every one of ours goes through here. */
  const followLink = (event) => {
    const link = event.target.closest("a[data-go]");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    go(link.dataset.go);
  };

  const go = (feature) => {
    const hash = feature === "overview" ? "#overview" : `#feature=${feature}`;
    if (location.hash === hash) followHash();
    else location.hash = hash;
  };
  saeVis.go = go;

  const step = (by) => {
    const next = index.ids[index.ids.indexOf(shown) + by];
    if (next !== undefined) go(next);
  };

  const arrowKeys = (event) => {
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || event.shiftKey) return;
    if (saeVis.overview?.visible || event.target.closest("input, textarea, .seq, .whole, [role=dialog]")) return; // keys of their own
    if (event.key === "ArrowLeft") step(-1);
    else if (event.key === "ArrowRight") step(1);
  };

  const addKeys = () => {
    const view = "Features";
    const unlessInOverview = (act) => () => (saeVis.overview?.visible ? false : act());
    saeVis.key({ keys: ["j"], description: "Next feature", view, run: unlessInOverview(() => step(1)) });
    saeVis.key({ keys: ["k"], description: "Previous feature", view, run: unlessInOverview(() => step(-1)) });
    saeVis.key({ keys: ["ArrowLeft", "ArrowRight"], description: "Previous and next feature", view }); // arrowKeys has them
    saeVis.key({ keys: ["/"], description: "Search", view, run: search });
    saeVis.key({ keys: ["s"], description: "Star, or take the star away", view, run: star });
    if (saeVis.overview) {
      const table = "In the overview";
      saeVis.key({ keys: ["ArrowUp", "ArrowDown"], description: "Go from row to row", view: table }); // js/overview_table.js has them
      saeVis.key({ keys: ["Enter"], description: "Open the feature", view: table });
    }
    if (saeVis.overview) saeVis.key({ keys: ["o", "Escape"], description: "Overview", view, run: unlessInOverview(() => go("overview")) });
  };

  const star = () => {
    const button = place.querySelector(".star");
    if (!button || saeVis.overview?.visible) return false;
    button.click();
  };

  const search = () => {
    const field = document.querySelector(".search input") ?? document.querySelector(".selector input");
    if (!field) return false;
    field.focus();
    field.select();
  };

  /* What was typed may be a number, which is also what the list gives, or a label or a part of one. */
  const ask = (typed) => {
    const text = typed.trim();
    const byLabel = (fits) => Object.keys(labels()).find((id) => fits(labels()[id].toLowerCase()) && index.ids.includes(Number(id)));
    const wanted = text.toLowerCase();
    const feature = byLabel((label) => label === wanted) ?? byLabel((label) => label.includes(wanted));
    if (text) go(/^\d+$/.test(text) ? text : (feature ?? encodeURIComponent(text)));
  };

  /* The list holds only what fits the text, so that 20,000 features cost nothing. */
  const offerChoices = () => {
    const text = document.querySelector(".choose").value.trim().toLowerCase();
    const choices = [];
    for (const id of index.ids) {
      const label = labels()[id] ?? "";
      if (text && (String(id).startsWith(text) || label.toLowerCase().includes(text))) {
        const option = document.createElement("option");
        option.value = id;
        option.label = label ? `${id} ${label}` : String(id);
        if (choices.push(option) === MOST_CHOICES) break;
      }
    }
    document.querySelector(".choices").replaceChildren(...choices);
  };

  /* --- showing one --- */

  const show = async (asked) => {
    const turn = ++latest; // what was asked for before, and is not there yet, is not wanted any more
    const feature = /^\d+$/.test(asked) ? Number(asked) : NaN;
    if (feature === shown) {
      saeVis.say("");
      saeVis.overview?.show(false);
      return update();
    }
    const at = index.ids.indexOf(feature);
    if (at < 0) {
      const ids = index.ids;
      let text = asked;
      try { text = decodeURIComponent(asked); } catch { /* shown as it is */ }
      saeVis.say(`There is no feature “${text.slice(0, 40)}” in this page, which holds ${ids.length}, from ${ids[0]} to ${ids[ids.length - 1]}.`);
      return;
    }
    if (!plain.has(feature) && !saeVis.canInflate) return saeVis.say(saeVis.cannotInflate);
    let html = plain.get(feature);
    try {
      html ??= near.get(feature) ?? (await unpacked(feature, at, () => turn === latest));
    } catch (error) {
      if (turn === latest) saeVis.say(error.message);
      return;
    }
    if (turn !== latest) return; // another feature was asked for meanwhile
    saeVis.hideHover?.();
    saeVis.replaceContent(place, html);
    saeVis.checkLosses?.();
    saeVis.tellShown?.();
    document.dispatchEvent(new CustomEvent("saevis:shown"));
    shown = feature;
    saeVis.overview?.show(false);
    saeVis.say("");
    update();
    announce(at);
    lookAhead(at);
  };

  /* The neighbours may be asked for next: they are unpacked once what was asked for is seen. */
  const lookAhead = (at) => {
    const neighbours = [at + 1, at - 1].map((place) => index.ids[place]).filter((id) => id !== undefined && !plain.has(id));
    for (const feature of near.keys()) if (!neighbours.includes(feature)) near.delete(feature);
    // After the paint. Not when the browser is idle, which some are never.
    if (saeVis.canInflate) requestAnimationFrame(() => setTimeout(() => neighbours.forEach(unpackAhead)));
  };
  const unpackAhead = async (feature) => {
    if (near.has(feature)) return;
    try {
      near.set(feature, await unpacked(feature, index.ids.indexOf(feature), () => false));
    } catch {
      // tried again, and told, when it is asked for
    }
  };

  /* The HTML of a feature that is not to be shown, for who reads its examples. */
  saeVis.featureHtml = async (feature) =>
    plain.get(feature) ?? unpacked(feature, index.ids.indexOf(feature), () => false);

  const announce = (at) => {
    const label = labels()[shown];
    const spoken = document.querySelector(".spoken");
    if (spoken) spoken.textContent = `Feature ${shown}${label ? ` · ${label}` : ""}, ${at + 1} of ${index.ids.length}`;
  };

  const unpacked = async (feature, at, isWanted) => {
    const text = await packedText(feature, at, isWanted);
    try {
      return await saeVis.inflateFragment(text);
    } catch {
      throw new Error(`Feature ${feature} cannot be unpacked: what is stored of it is damaged.`);
    }
  };

  /* From a file of the site, or from the page, whose thousands of elements are looked for once. */
  const packedText = (feature, at, isWanted) => {
    if (saeVis.packedFeature) return saeVis.packedFeature(feature, at, isWanted);
    elements ??= new Map([...document.querySelectorAll("script[data-packed]")].map((element) => [Number(element.dataset.packed), element]));
    return elements.get(feature).textContent;
  };

  const update = () => {
    document.title = `Feature ${shown} · ${index.title}`;
    const focused = document.activeElement;
    const choose = document.querySelector(".choose");
    if (!choose) return;
    choose.value = shown;
    const at = index.ids.indexOf(shown);
    document.querySelector(".previous").disabled = at <= 0;
    document.querySelector(".next").disabled = at >= index.ids.length - 1;
    if (focused?.disabled) document.querySelector(".selector button:enabled")?.focus();
    document.querySelector(".count").textContent = `${(at + 1).toLocaleString("en")} of ${index.ids.length.toLocaleString("en")}`;
  };

  document.addEventListener("DOMContentLoaded", start);
})();
