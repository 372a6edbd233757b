/* The prompt-centric page: the columns for a metric and a token, chosen by click, keyboard or hash (#pos=5&metric=loss_effect). */
(() => {
  "use strict";
  const saeVis = (globalThis.saeVis ??= {});
  const columns = new Map(); // feature -> its column's HTML
  const LOSSES = { loss_effect: "direct", loss_effect_full: "full" }; // metric -> what the underlines show beside it
  let rankings, strip, metrics, state, latest = 0;

  const start = () => {
    rankings = saeVis.data("rankings");
    strip = document.getElementById("strip");
    metrics = document.getElementById("metrics");
    if (!rankings || !strip) return;
    state = { position: rankings.position, metric: rankings.metric };
    for (const column of document.querySelectorAll("#columns > .feature")) {
      columns.set(Number(column.dataset.feature), column.outerHTML);
    }
    saeVis.radioGroup(strip, (button, place) => go({ ...state, position: place }));
    saeVis.radioGroup(metrics, (button) => go({ ...state, metric: button.dataset.metric }));
    window.addEventListener("hashchange", followHash);
    if (state.metric in LOSSES) saeVis.showLoss(LOSSES[state.metric]);
    followHash();
  };

  /* --- asking --- */

  const followHash = () => {
    const asked = new URLSearchParams(location.hash.slice(1));
    if (!asked.has("pos") && !asked.has("metric")) return;
    const position = asked.get("pos") ?? String(state.position);
    const metric = asked.get("metric") ?? state.metric;
    if (!/^\d+$/.test(position) || Number(position) >= strip.children.length) {
      saeVis.say(`There is no position “${position.slice(0, 40)}” in this prompt: 0 to ${strip.children.length - 1}.`);
    } else if (!Object.hasOwn(rankings.scores, metric)) {
      saeVis.say(`There is no metric “${metric.slice(0, 40)}” here: ${Object.keys(rankings.scores).join(", ")}.`);
    } else {
      show({ position: Number(position), metric });
    }
  };

  const go = ({ position, metric }) => {
    const hash = `#pos=${position}&metric=${metric}`;
    if (location.hash === hash) show({ position, metric });
    else location.hash = hash;
  };

  /* --- showing --- */

  const show = async (asked) => {
    const turn = ++latest;
    const ranked = rankings.scores[asked.metric][asked.position];
    const missing = ranked.filter(([feature]) => !columns.has(feature));
    if (missing.length && !saeVis.canInflate) return saeVis.say(saeVis.cannotInflate);
    await Promise.all(
      missing.map(async ([feature]) => {
        const element = document.querySelector(`script[data-packed="${feature}"]`);
        columns.set(feature, await saeVis.inflate(element.textContent));
      }),
    );
    if (turn !== latest) return; // something else was asked for meanwhile
    state = asked;
    saeVis.say("");
    saeVis.hideHover?.();
    saeVis.check(strip, (button, place) => place === state.position);
    saeVis.check(metrics, (button) => button.dataset.metric === state.metric);
    document.getElementById("about").textContent = rankings.about[state.metric];
    const none = document.getElementById("none");
    none.textContent = rankings.none[state.metric];
    none.hidden = ranked.length > 0;
    const place = document.getElementById("columns");
    if (state.metric in LOSSES) saeVis.showLoss(LOSSES[state.metric]);
    saeVis.replaceContent(place, ranked.map(([feature]) => columns.get(feature)).join(""));
    ranked.forEach(([, score], rank) => finish(place.children[rank], rank + 1, score));
    saeVis.tellShown?.();
  };

  /* What in a column depends on the metric and the position: title, bold token, lines on the histograms. */
  const finish = (column, rank, score) => {
    column.querySelector('[data-slot="rank"]').textContent = `#${rank}`;
    column.querySelector('[data-slot="score"]').textContent = score;
    const tokens = column.querySelector(".prompt .seq")?.children;
    if (!tokens) return;
    [...tokens].forEach((token, place) => token.classList.toggle("b", place === state.position));
    const onLoss = state.metric in LOSSES;
    const acting = tokens[onLoss ? state.position - 1 : state.position];
    const activation = acting ? saeVis.facts(acting).activation : null;
    saeVis.drawLines(column, "pin", activation, onLoss ? saeVis.facts(tokens[state.position]).logit : null);
  };

  document.addEventListener("DOMContentLoaded", start);
})();
