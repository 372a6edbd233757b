/* The prompt-centric page: the columns for a metric and a token, chosen by click, keyboard or hash (#pos=5&metric=loss_effect). */
(() => {
  "use strict";
  const saeVis = (globalThis.saeVis ??= {});
  const columns = new Map(); // feature -> its column's HTML
  const LOSSES = { loss_effect: "direct", loss_effect_full: "full" }; // metric -> what the underlines show beside it
  let rankings, strip, metrics, state, latest = 0;

  const start = () => {
    rankings = saeVis.data("rankings");
    strip = document.querySelector(".strip");
    metrics = document.querySelector(".metrics");
    if (!rankings || !strip) return;
    state = { position: rankings.position, metric: rankings.metric, feature: null };
    for (const column of document.querySelectorAll(".prompt-columns > .feature")) {
      columns.set(Number(column.dataset.feature), column.outerHTML);
    }
    saeVis.radioGroup(strip, (button, place) => go({ metric: state.metric, position: place }));
    saeVis.radioGroup(metrics, (button) => go({ position: state.position, metric: button.dataset.metric }));
    window.addEventListener("hashchange", followHash);
    if (state.metric in LOSSES) saeVis.showLoss(LOSSES[state.metric]);
    if (location.hash) followHash();
  };

  /* --- asking --- */

  const followHash = () => {
    const asked = new URLSearchParams(location.hash.slice(1));
    if (location.hash && !asked.has("pos") && !asked.has("metric")) return;
    const otherwise = location.hash ? state : rankings; // without one, as the page was at first
    const feature = /^\d+$/.test(asked.get("feature") ?? "") ? Number(asked.get("feature")) : null;
    const position = asked.get("pos") ?? String(otherwise.position);
    const metric = asked.get("metric") ?? otherwise.metric;
    if (!/^\d+$/.test(position) || Number(position) >= strip.children.length) {
      saeVis.say(`There is no position “${position.slice(0, 40)}” in this prompt: 0 to ${strip.children.length - 1}.`);
    } else if (!Object.hasOwn(rankings.scores, metric)) {
      saeVis.say(`There is no metric “${metric.slice(0, 40)}” here: ${Object.keys(rankings.scores).join(", ")}.`);
    } else {
      show({ position: Number(position), metric, feature });
    }
  };

  const go = ({ position, metric, feature = null }) => {
    const hash = `#pos=${position}&metric=${metric}${feature === null ? "" : `&feature=${feature}`}`;
    if (location.hash === hash) show({ position, metric, feature });
    else location.hash = hash;
  };

  /* What the panels of the whole prompt ask for: a token, and perhaps a feature, by the metric that is chosen. */
  saeVis.goToToken = (position, feature = null) => go({ ...state, position, feature });

  /* --- showing --- */

  const show = async (asked) => {
    const turn = ++latest;
    const ranked = rankings.scores[asked.metric][asked.position];
    const packed = (feature) => document.querySelector(`script[data-packed="${feature}"]`);
    const listed = [...ranked];
    const among = ranked.some(([feature]) => feature === asked.feature);
    if (asked.feature !== null && !among && (columns.has(asked.feature) || packed(asked.feature))) listed.push([asked.feature, ""]);
    const missing = listed.filter(([feature]) => !columns.has(feature));
    if (missing.length && !saeVis.canInflate) return saeVis.say(saeVis.cannotInflate);
    try {
      await Promise.all(missing.map(async ([feature]) => columns.set(feature, await saeVis.inflateFragment(packed(feature).textContent))));
    } catch {
      if (turn === latest) saeVis.say("The columns of this token cannot be unpacked: what is stored of them is damaged.");
      return;
    }
    if (turn !== latest) return; // something else was asked for meanwhile
    state = asked;
    saeVis.say("");
    saeVis.hideHover?.();
    saeVis.check(strip, (button, place) => place === state.position);
    saeVis.check(metrics, (button) => button.dataset.metric === state.metric);
    document.querySelector(".about-ranking").textContent = rankings.about[state.metric];
    const none = document.querySelector(".none-ranked");
    none.textContent = rankings.none[state.metric];
    none.hidden = ranked.length > 0;
    const place = document.querySelector(".prompt-columns");
    if (state.metric in LOSSES) saeVis.showLoss(LOSSES[state.metric]);
    saeVis.replaceContent(place, listed.map(([feature]) => columns.get(feature)).join(""));
    listed.forEach(([, score], at) => finish(place.children[at], at < ranked.length ? `#${at + 1}` : "not ranked here:", score));
    saeVis.tellShown?.();
    mark([...place.children].find((column) => Number(column.dataset.feature) === asked.feature));
    document.dispatchEvent(new CustomEvent("sae-vis-prompt", { detail: state }));
  };

  const mark = (column) => {
    if (!column) return;
    column.classList.add("marked");
    column.scrollIntoView({ block: "nearest" });
  };

  /* What in a column depends on the metric and the position: title, bold token, lines on the histograms. */
  const finish = (column, rank, score) => {
    column.querySelector('[data-slot="rank"]').textContent = rank;
    column.querySelector('[data-slot="score"]').textContent = score;
    if (rankings.places) return boldPair(column);
    const tokens = column.querySelector(".prompt .seq")?.children;
    if (!tokens) return;
    [...tokens].forEach((token, place) => token.classList.toggle("b", place === state.position));
    const onLoss = state.metric in LOSSES;
    const acting = tokens[onLoss ? state.position - 1 : state.position];
    const activation = acting ? saeVis.facts(acting).activation : null;
    saeVis.drawLines(column, "pin", activation, onLoss ? saeVis.facts(tokens[state.position]).logit : null);
  };

  /* Of two prompts, a position of the strip is a pair: the positions of both, null where one has no counterpart. */
  const boldPair = (column) => {
    column.querySelectorAll(".prompt .seq").forEach((sequence, which) => {
      [...sequence.children].forEach((token, at) => token.classList.toggle("b", at === rankings.places[state.position][which]));
    });
  };

  document.addEventListener("DOMContentLoaded", start);
})();
