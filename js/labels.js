/* What the reader says of features: stars, labels and notes. They are kept in the browser's storage, under a key that tells whose
   features these are, and go to a JSON file and come from one, which Python reads and writes too (sae_vis._labels).

   What the reader changed wins over what Python says, in this browser, and is marked. */
(() => {
  "use strict";
  const saeVis = (globalThis.saeVis ??= {});
  const FORMAT = "sae_vis labels";
  const MOST = { label: 200, note: 10_000 }; // characters, as Python counts them
  let index, own, every, starred, loaded; // own: id -> what the reader changed; every: id -> label, of all
  let kept = true; // whether the browser keeps what is changed

  /* --- what is said, by Python and by the reader --- */

  const python = (id) => ({
    label: (saeVis.labels ?? index.labels)?.[id] ?? "",
    note: index.notes?.[id] ?? "",
    star: starred.has(Number(id)),
  });

  const isObject = (value) => value !== null && typeof value === "object" && !Array.isArray(value);

  /* As much of a text as Python takes: characters, and no halves of any. */
  const cut = (text, most) => [...text].slice(0, most).join("").replace(/\p{Surrogate}/gu, "\ufffd");

  /* Storage and files may hold anything: only what is of the right kind is taken. */
  const cleaned = (entry) => {
    if (!isObject(entry)) return null;
    const clean = {};
    for (const name of ["label", "note"]) if (typeof entry[name] === "string") clean[name] = cut(entry[name], MOST[name]);
    if (typeof entry.star === "boolean") clean.star = entry.star;
    if (typeof entry.changed === "string" && !Number.isNaN(Date.parse(entry.changed))) clean.changed = entry.changed;
    return clean;
  };
  const isId = (text) => /^\d{1,10}$/.test(text);
  const cleanedAll = (entries) => {
    const clean = Object.entries(entries ?? {}).map(([id, entry]) => [id, isId(id) && cleaned(entry)]);
    return new Map(clean.filter(([, entry]) => entry).map(([id, entry]) => [Number(id), entry]));
  };

  const said = (id) => ({ ...python(id), ...own?.get(Number(id)) });
  saeVis.labelOf = (id) => (index ? said(id).label : "");
  saeVis.noteOf = (id) => (index ? said(id).note : "");
  saeVis.isEdited = (id) => Boolean(index) && said(id).label !== python(id).label;
  saeVis.stars = new Set();

  /* All labels by id, for looking through them. */
  saeVis.allLabels = () => {
    every ??= { ...(saeVis.labels ?? index?.labels) };
    for (const id of own?.keys() ?? []) every[id] = said(id).label;
    return every;
  };

  const key = () => `labels:${index.key}`;
  const read = () => {
    own = cleanedAll(saeVis.storage.get(key()));
    look();
  };
  const look = () => {
    every = undefined;
    saeVis.stars.clear();
    for (const id of [...(index.stars ?? []), ...own.keys()]) if (said(id).star) saeVis.stars.add(Number(id));
  };
  const keep = () => (kept = saeVis.storage.set(key(), own.size ? Object.fromEntries(own) : null));

  const tell = (ids) => {
    show();
    document.dispatchEvent(new CustomEvent("saevis:labels", { detail: { ids } }));
  };

  /* Change what the reader says: label, note and star; what is undefined goes back to what Python says. */
  saeVis.sayOf = (id, changes) => {
    const entry = { ...own.get(id), ...changes, changed: new Date().toISOString() };
    for (const name of ["label", "note", "star"]) {
      if (name in entry && (entry[name] === undefined || entry[name] === python(id)[name])) delete entry[name];
    }
    const empty = !("label" in entry || "note" in entry || "star" in entry);
    if (empty) own.delete(id);
    else own.set(id, cleaned(entry));
    every = undefined;
    if (said(id).star) saeVis.stars.add(id);
    else saeVis.stars.delete(id);
    keep();
    tell([id]);
  };

  /* --- on the page --- */

  const element = (...all) => saeVis.element(...all);
  const idOf = (place) => Number(place.closest(".feature").dataset.feature);

  const tools = (feature) => {
    const star = element("button", { type: "button", class: "star" });
    const edit = element("button", { type: "button", class: "edit", "aria-expanded": "false" }, "\u270e");
    edit.setAttribute("aria-label", `Label and note of feature ${idOf(feature)}`);
    edit.title = "Label and note";
    const made = element("span", { class: "said" }, star, edit);
    feature.querySelector(".head h2").after(made);
    return made;
  };

  /* The heading of a feature says what is said of it. */
  const showOn = (feature) => {
    const id = idOf(feature);
    const heading = feature.querySelector(".head h2");
    if (!heading) return;
    const { label, note, star } = said(id);
    let place = heading.querySelector(".label");
    if (!place && label) heading.append(" ", (place = element("bdi", { class: "label" })));
    if (place) place.textContent = saeVis.withCodes(label.replace(/\s/g, " "));
    heading.querySelector(".edited")?.remove();
    if (saeVis.isEdited(id)) {
      const mark = element("small", { class: "edited" }, "edited");
      mark.title = `Your label, kept in this browser. In the data: ${python(id).label || "none"}`;
      heading.append(" ", mark);
    }
    const button = (feature.querySelector(".said") ?? tools(feature)).querySelector(".star");
    button.textContent = star ? "\u2605" : "\u2606";
    button.setAttribute("aria-pressed", String(star));
    button.setAttribute("aria-label", `Star feature ${id}`);
    button.title = star ? "Take the star away" : "Star this feature";
    let text = feature.querySelector(".reader-note");
    if (!note) text?.remove();
    else {
      if (!text) feature.querySelector(".head").after((text = element("p", { class: "reader-note" })));
      text.textContent = saeVis.withCodes(note);
    }
  };

  const show = () => {
    for (const feature of document.querySelectorAll("article.feature")) showOn(feature);
    for (const link of document.querySelectorAll("a[data-go]:not(.twin > a)")) link.title = saeVis.labelOf(link.dataset.go);
  };

  /* --- editing --- */

  const form = (feature) => {
    const id = idOf(feature);
    const label = element("input", { class: "label-field", maxlength: MOST.label, "aria-label": "Label", placeholder: "Label", autocomplete: "off" });
    const note = element("textarea", { class: "note-field", maxlength: MOST.note, rows: "3", "aria-label": "Note", placeholder: "Note" });
    label.value = said(id).label;
    note.value = said(id).note;
    const reset = element("button", { type: "button", class: "reset" }, "Reset");
    const done = element("button", { type: "button" }, "Done");
    const where = element("small", {}, kept ? "Kept in this browser. The View menu exports it to a file." : "This browser keeps nothing for this page: export it in the View menu before you leave.");
    const made = element("div", { class: "say", role: "group", "aria-label": `What you say of feature ${id}` }, label, note, element("p", {}, where, reset, done));
    const toggle = () => (reset.disabled = !("label" in (own.get(id) ?? {}) || "note" in (own.get(id) ?? {})));
    toggle();
    label.addEventListener("input", () => (saeVis.sayOf(id, { label: label.value.trim() }), toggle()));
    note.addEventListener("input", () => (saeVis.sayOf(id, { note: note.value.trimEnd() }), toggle()));
    reset.addEventListener("click", () => {
      saeVis.sayOf(id, { label: undefined, note: undefined });
      label.value = said(id).label;
      note.value = said(id).note;
      toggle();
      label.focus();
    });
    done.addEventListener("click", () => edit(feature, false)); // no form: some frames allow none
    made.addEventListener("keydown", (event) => {
      event.stopPropagation(); // the page's own keys
      if (event.key === "Escape" || (event.key === "Enter" && event.target === label)) edit(feature, false);
    });
    return made;
  };

  const edit = (feature, wanted) => {
    const button = feature.querySelector(".said .edit");
    button.setAttribute("aria-expanded", String(wanted));
    feature.querySelector(".say")?.remove();
    if (!wanted) return button.focus();
    feature.querySelector(".head").after(form(feature));
    feature.querySelector(".label-field").focus();
  };

  const clicked = (event) => {
    const button = event.target.closest?.(".said button");
    if (!button) return;
    const feature = button.closest(".feature");
    if (button.matches(".star")) saeVis.sayOf(idOf(feature), { star: !saeVis.stars.has(idOf(feature)) });
    else edit(feature, !feature.querySelector(".say"));
  };

  /* --- files --- */

  /* Hand the reader a file. */
  saeVis.download = (name, text, type) => {
    const link = element("a", { download: name, href: URL.createObjectURL(new Blob([text], { type })) });
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  };

  const exported = () => {
    const ids = new Set([...Object.keys(saeVis.labels ?? index.labels ?? {}), ...Object.keys(index.notes ?? {}), ...(index.stars ?? []), ...own.keys()].map(Number));
    const features = {};
    for (const id of [...ids].sort((a, b) => a - b)) {
      const { label, note, star } = said(id);
      const { changed } = own.get(id) ?? {};
      if (label || note || star || changed) features[id] = { ...(label && { label }), ...(note && { note }), ...(star && { star }), ...(changed && { changed }) };
    }
    return { format: FORMAT, version: 1, of: index.of, features };
  };
  saeVis.exportLabels = () => saeVis.download(`labels-${index.key}.json`, `${JSON.stringify(exported(), null, 1)}\n`, "application/json");

  /* Whether an entry of a file says what it may say: what is of another kind would be taken for nothing said. */
  const KINDS = { label: "string", note: "string", star: "boolean", changed: "string" };
  const isSound = (entry) => isObject(entry) && Object.entries(KINDS).every(([name, kind]) => (entry[name] ?? null) === null || typeof entry[name] === kind);

  /* Take over what a file says: for each feature, what was changed later wins. What says no time, as Python's files do, is taken
     for the features that the reader has not changed here. */
  saeVis.importLabels = (text) => {
    let file;
    try {
      file = JSON.parse(text);
    } catch {
      return saeVis.say("This is not a file of labels: it is no JSON.");
    }
    if (file?.format !== FORMAT) return saeVis.say("This is not a file of labels: export one from such a page, or write one in Python with save_labels.");
    if (file.version !== 1) return saeVis.say("This file of labels is of another version than this page reads, which is 1.");
    if (!isObject(file.features) || !isObject(file.of)) return saeVis.say("This file of labels is damaged: nothing is changed.");
    const differing = Object.keys(index.of ?? {}).filter((name) => Object.hasOwn(file.of, name) && file.of[name] !== index.of[name]);
    if (differing.length) return saeVis.say(`These labels are of other features: the ${differing.join(", ").replaceAll("_", " ")} differs.`);
    const taken = [], left = [], wrong = Object.entries(file.features).filter(([id, entry]) => !isId(id) || !isSound(entry)).length;
    for (const [id, entry] of cleanedAll(file.features)) {
      if (!isSound(file.features[id])) continue;
      const mine = own.get(id)?.changed;
      if (mine && !(Date.parse(entry.changed) > Date.parse(mine))) left.push(id);
      else {
        own.set(id, { label: "", note: "", star: false, ...entry });
        taken.push(id);
      }
    }
    keep();
    look();
    tell(null);
    const told = [`Taken over for ${taken.length} feature${taken.length === 1 ? "" : "s"}.`];
    const ranges = index.ranges ?? index.ids?.map((id) => [id, id]);
    const absent = ranges ? taken.filter((id) => !ranges.some(([low, high]) => low <= id && id <= high)).length : 0;
    if (absent) told.push(`${absent} of them ${absent === 1 ? "is" : "are"} not in this page.`);
    if (left.length) told.push(`${left.length} stay${left.length === 1 ? "s" : ""} as you changed ${left.length === 1 ? "it" : "them"} later.`);
    if (wrong) told.push(`${wrong} ${wrong === 1 ? "is" : "are"} damaged and left out.`);
    if (!kept) told.push("This browser has no room for them: they are gone when the page is closed.");
    saeVis.say(told.join(" "));
  };

  const choose = () => {
    const input = element("input", { type: "file", accept: ".json,application/json" });
    input.addEventListener("change", async () => input.files[0] && saeVis.importLabels(await input.files[0].text()));
    input.click();
  };

  /* --- start --- */

  document.addEventListener("DOMContentLoaded", () => {
    index = saeVis.data("index") ?? saeVis.data("rankings");
    if (!index?.key || !document.querySelector(".prompt-columns, main .feature")) return (index = undefined);
    starred = new Set(index.stars);
    read();
    saeVis.onShown(() => {
      if (saeVis.labels === loaded) return show();
      loaded = saeVis.labels; // a site's, which come after the page
      every = undefined;
      tell(null);
    });
    document.addEventListener("click", clicked);
    window.addEventListener("storage", (event) => {
      if (event.key !== null && event.key !== `sae_vis:${key()}`) return;
      read();
      tell(null);
    });
    const group = { group: "Labels" };
    saeVis.viewAction({ ...group, label: "Export", title: "Write labels, notes and stars to a file", run: saeVis.exportLabels });
    saeVis.viewAction({ ...group, label: "Import", title: "Read them from a file: what was changed later wins", run: choose });
    queueMicrotask(() => tell(null));
  });
})();
