/* One box that finds features by id, by label, by the tokens that they fire on, promote or suppress, and by the text of their
   examples. All text is compared in lower case and as UTF-8, a character a byte: so tokens that are only part of a character can
   be found too. Alone they have no case, so both cases of their character are looked for. What stands in several tokens is looked
   for among the features whose examples hold tokens that could make it up, and then in their examples themselves. */
(() => {
  "use strict";
  const saeVis = (globalThis.saeVis ??= {});
  const overview = saeVis.overview;
  const box = overview && document.querySelector(".search-box");
  if (!box) return;
  const hits = document.querySelector(".search-hits");
  const MOST_HITS = 6; // of each kind that are offered
  const MOST_UNSELECTIVE = 300; // tokens that could begin or end a phrase; with more of them nothing is ruled out
  const MOST_CHECKED = 500; // features whose examples are read for one phrase
  const BATCH = 20;
  const LISTS = { fires: "top_tokens", promotes: "promoted", suppresses: "suppressed" };
  const NAMES = { fires: "fires on", promotes: "promotes", suppresses: "suppresses", label: "label contains", text: "in examples" };
  const OPERATOR = /^(fires|promotes|suppresses|label|text|id):\s?(.*)$/i;
  let index = null; // {ids, texts, exact, rows: {fires, promotes, suppresses}}
  let turn = 0, typing = null;

  /* --- the index --- */

  const utf8 = (text) =>
    /^[\0-\x7f]*$/.test(text) ? text : Array.from(new TextEncoder().encode(text), (byte) => String.fromCharCode(byte)).join("");
  const plainOf = (text) => utf8(text.toLowerCase());
  const decoder = new TextDecoder();
  const textOfBytes = (bytes) => decoder.decode(Uint8Array.from(bytes, (byte) => byte.charCodeAt(0)));
  /* Bytes with every character that is whole in lower case. */
  const WHOLE = /[A-Z]|[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}/g;
  const lowered = (bytes) => bytes.replace(WHOLE, (character) => plainOf(textOfBytes(character)));
  const ENTITIES = { "&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": '"', "&#x27;": "'" };
  const unescaped = (html) => (html.includes("&") ? html.replace(/&(?:amp|lt|gt|quot|#x27);/g, (entity) => ENTITIES[entity]) : html);

  /* The text of a token: its own where its HTML does not tell it, as sae_vis._overview.texts_apart has it. */
  const textOf = (id, html) => {
    const apart = overview.texts[id];
    if (apart?.startsWith("\0")) return lowered(apart.slice(1).replace(/../g, (byte) => String.fromCharCode(Number.parseInt(byte, 16))));
    if (apart !== undefined) return plainOf(apart);
    return plainOf(html.startsWith("<i>·</i>") ? ` ${unescaped(html.slice(8))}` : unescaped(html));
  };

  const prepare = async () => {
    await overview.load();
    await overview.ready;
    return (index ??= made());
  };

  const made = () => {
    const entries = [...(overview.vocabulary() ?? new Map())];
    const ids = entries.map(([id]) => id);
    const texts = entries.map(([id, html]) => textOf(id, html));
    const place = new Map(ids.map((id, at) => [id, at]));
    const exact = new Map(); // text -> places
    texts.forEach((text, at) => exact.get(text)?.push(at) ?? exact.set(text, [at]));
    const rows = Object.fromEntries(Object.entries(LISTS).map(([kind, name]) => [kind, inverted(overview.lists[name], place)]));
    return { ids, texts, place, exact, rows };
  };

  /* For each token of the vocabulary the rows whose list holds it. */
  const inverted = ({ starts, ids }, place) => {
    const at = Int32Array.from(ids, (id) => place.get(id) ?? -1);
    const from = new Int32Array(place.size + 1);
    for (const token of at) if (token >= 0) from[token + 1]++;
    for (let token = 0; token < place.size; token++) from[token + 1] += from[token];
    const next = from.slice(), rows = new Int32Array(from[place.size]);
    for (let row = 0; row + 1 < starts.length; row++) {
      for (let item = starts[row]; item < starts[row + 1]; item++) if (at[item] >= 0) rows[next[at[item]]++] = row;
    }
    return { count: (token) => from[token + 1] - from[token], of: (token) => rows.subarray(from[token], from[token + 1]) };
  };

  /* The places of the tokens that contain a text: those that are it first, with or without a space, then those that begin so. */
  const tokensWith = (needle) => {
    const found = [[], [], [], []];
    const bare = needle.trim();
    index.texts.forEach((text, at) => {
      if (!text.includes(needle)) return;
      const inside = text.trim();
      found[text === needle ? 0 : inside === bare ? 1 : inside.startsWith(bare) ? 2 : 3].push(at);
    });
    return found.flat();
  };

  /* --- sets of rows --- */

  const emptySet = () => new Uint8Array(overview.n);
  const addRows = (set, rows) => {
    for (const row of rows) set[row] = 1;
    return set;
  };
  const size = (set) => set.reduce((sum, bit) => sum + bit, 0);

  /* --- which examples show a token --- */

  const blocks = new Map(); // number -> promise of a Map: token -> rows
  const files = new Map(); // number -> promise of the packed blocks

  const blockOf = (token) => {
    const firsts = overview.examples.blocks;
    let low = 0, high = firsts.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (firsts[middle] <= token) low = middle + 1;
      else high = middle;
    }
    return low - 1;
  };

  const readBlock = async (number) => {
    const starts = overview.examples.files;
    const file = starts.filter((first) => first <= number).length - 1;
    if (!files.has(file)) files.set(file, overview.asset(`examples${file}`).then((text) => text.split(" ")));
    files.get(file).catch(() => files.delete(file));
    return decoded(await saeVis.inflateBytes((await files.get(file))[number - starts[file]]), overview.examples.blocks[number]);
  };

  const decoded = (bytes, first) => {
    let at = 0;
    const next = () => {
      for (let value = 0, shift = 1; ; shift *= 128) {
        const byte = bytes[at++];
        value += (byte & 127) * shift;
        if (byte < 128) return value;
      }
    };
    const rowsOf = new Map();
    for (let token = first; at < bytes.length; ) {
      token += next();
      const rows = new Int32Array(next());
      for (let place = 0, row = 0; place < rows.length; place++) rows[place] = row += next();
      rowsOf.set(token, rows);
    }
    return rowsOf;
  };

  /* A function from a token to the rows whose examples show it; for the tokens at these places. */
  const postings = async (places) => {
    const wanted = new Set(places.map((at) => blockOf(index.ids[at])).filter((number) => number >= 0));
    for (const number of wanted) {
      if (!blocks.has(number)) blocks.set(number, readBlock(number));
      blocks.get(number).catch(() => blocks.delete(number));
    }
    const maps = new Map(await Promise.all([...wanted].map(async (number) => [number, await blocks.get(number)])));
    return (at) => maps.get(blockOf(index.ids[at]))?.get(index.ids[at]) ?? [];
  };

  /* The rows whose examples show a text in one token (known), and those that may show it in several (possible). */
  const inExamples = async (needle) => {
    const within = tokensWith(needle);
    const { begins, ends, middles } = cuts(needle);
    const every = [within, ...begins, ...ends, ...middles.map(([, , places]) => places)].flat();
    const rowsOf = await postings([...new Set(every)]);
    const union = (places) => places.reduce((set, at) => addRows(set, rowsOf(at)), emptySet());
    const known = union(within);
    const reached = begins.map((places, at) => (at === 0 ? null : places.length > MOST_UNSELECTIVE ? emptySet().fill(1) : union(places)));
    const and = (into, one, other) => into.forEach((bit, row) => (into[row] = bit | (one[row] & other[row])));
    for (const [from, to, places] of middles) and(reached[to], reached[from], union(places)); // in rising order of their ends
    const possible = emptySet();
    ends.forEach((places, from) => {
      if (from === 0 || !places.length) return;
      and(possible, reached[from], places.length > MOST_UNSELECTIVE ? emptySet().fill(1) : union(places));
    });
    possible.forEach((bit, row) => (possible[row] = bit && !known[row] ? 1 : 0));
    return { known, possible };
  };

  /* How tokens may share out a text: begins[i] end with its first i characters, ends[i] begin with what is left after them, and
     middles are the pieces in between that are a token. */
  const cuts = (needle) => {
    const length = needle.length;
    const spelled = spellings(needle);
    const begins = Array.from({ length }, () => []), ends = Array.from({ length }, () => []), middles = [];
    const inside = Array.from({ length: Math.max(0, length - 1) }, (_, place) => place + 1);
    const heads = inside.flatMap((cut) => spelled(0, cut).map((piece) => [cut, piece, piece.at(-1)]));
    const tails = inside.flatMap((cut) => spelled(cut, length).map((piece) => [cut, piece, piece[0]]));
    index.texts.forEach((text, at) => {
      const first = text[0], last = text.at(-1);
      for (const [cut, piece, end] of heads) if (last === end && begins[cut].length <= MOST_UNSELECTIVE && text.endsWith(piece)) begins[cut].push(at);
      for (const [cut, piece, start] of tails) if (first === start && ends[cut].length <= MOST_UNSELECTIVE && text.startsWith(piece)) ends[cut].push(at);
    });
    const whole = (places) => (places.length > MOST_UNSELECTIVE ? places.slice(0, MOST_UNSELECTIVE + 1) : places);
    for (let to = 2; to < length; to++) {
      for (let from = 1; from < to; from++) {
        const places = spelled(from, to).flatMap((piece) => index.exact.get(piece) ?? []);
        if (places.length) middles.push([from, to, places]);
      }
    }
    return { begins: begins.map(whole), ends: ends.map(whole), middles };
  };

  /* A function that gives how tokens may spell a piece of a text. Where it begins or ends inside a character, these bytes may be
     those of its upper case too. */
  const spellings = (needle) => {
    const upper = [...textOfBytes(needle)].map((lower) => {
      const [bytes, capital] = [utf8(lower), utf8(lower.toUpperCase())];
      return plainOf(lower.toUpperCase()) === bytes && capital.length === bytes.length ? capital : bytes;
    });
    const bounds = new Set([0]); // between characters
    let end = 0;
    for (const character of upper) bounds.add((end += character.length));
    const capitals = upper.join("");
    if (capitals.length !== needle.length) return (from, to) => [needle.slice(from, to)]; // it is no text, to the last byte
    return (from, to) => {
      let [first, last] = [from, to]; // of what is whole
      while (first < to && !bounds.has(first)) first++;
      while (last > first && !bounds.has(last)) last--;
      const either = (start, stop) => [...new Set([needle.slice(start, stop), capitals.slice(start, stop)])];
      return either(from, first).flatMap((head) => either(last, to).map((tail) => head + needle.slice(first, last) + tail));
    };
  };

  /* --- reading examples --- */

  /* Of the panel of examples, whatever stands before it: there are examples of where a feature does not fire, too. */
  const HOVER = /<section class="panel seqs" aria-label="Examples">.*?<script type="application\/json" class="hover">(.*?)<\/script>/s;

  /* Whether a feature's examples show a text; a layout without them leaves what the index says. */
  const shows = async (id, needle) => {
    const found = HOVER.exec(await saeVis.featureHtml(id));
    if (!found) return true;
    const data = JSON.parse(found[1]);
    let from = 0;
    return data.lengths.some((length) => {
      const ids = data.ids.slice(from, (from += length));
      const text = ids.map((token) => index.texts[index.place.get(token)] ?? "").join("");
      return text.includes(needle) || (/[^\0-\x7f]/.test(text) && lowered(text).includes(needle));
    });
  };

  /* Narrow the table to what shows a text in its examples, and check what is not sure yet, as long as it is wanted. */
  const showText = async (name, text, options, isWanted) => {
    const needle = needleOf(text);
    const { known, possible } = await inExamples(needle);
    if (!isWanted()) return;
    const passes = (row) => known[row] || possible[row];
    const put = () => overview.setFilter(name, (row) => passes(row) === 1, options);
    put();
    const open = overview.rows().filter((row) => possible[row]).slice(0, MOST_CHECKED);
    const all = size(possible);
    for (let done = 0; done < open.length && isWanted(); done += BATCH) {
      say(`checked ${done.toLocaleString("en")} of ${all.toLocaleString("en")} …`);
      const batch = [...open.slice(done, done + BATCH)];
      const found = await Promise.all(batch.map((row) => shows(overview.ids[row], needle).catch(() => true)));
      batch.forEach((row, place) => (possible[row] = found[place] ? 1 : 0));
      if (isWanted()) put();
    }
    if (!isWanted()) return;
    const rest = all - open.length;
    say(rest > 0 ? `${rest.toLocaleString("en")} of these are not checked: each token of the text is there, perhaps not in a row` : "");
  };

  const say = (text) => (overview.root.querySelector(".search-state").textContent = text);

  /* --- searching --- */

  /* Spaces at the end are still to be followed by something; a line's end is written as the page shows it. */
  const needleOf = (text) => plainOf(text.trimEnd().replaceAll("↵", "\n"));

  /* What was typed: its kind, if an operator or quotes say so, and the text. */
  const parsed = (typed) => {
    const operator = OPERATOR.exec(typed.trimStart());
    if (operator) return { kind: operator[1].toLowerCase(), text: operator[2] };
    const quoted = /^\s*"(.+?)"?\s*$/.exec(typed);
    return quoted ? { kind: "text", text: quoted[1] } : { kind: "", text: typed };
  };

  const find = ({ kind, text }) => {
    const needle = needleOf(text);
    const asked = (other) => !kind || kind === other;
    const found = { needle, text: text.trim(), phrase: text.trimEnd(), kind, tokens: {}, any: emptySet(), id: -1, labelled: [] };
    if (asked("id") && /^\d+$/.test(found.text)) {
      found.id = overview.row(Number(found.text));
      overview.ids.forEach((id, row) => String(id).startsWith(found.text) && (found.any[row] = 1));
      if (found.id >= 0) found.any[found.id] = 1; // no id begins with "07"
    }
    if (asked("label") && overview.hasLabels()) {
      const wanted = found.text.toLowerCase();
      overview.ids.forEach((id, row) => overview.label(id).toLowerCase().includes(wanted) && found.labelled.push(row));
      addRows(found.any, found.labelled);
    }
    const tokens = kind === "" || kind in LISTS ? tokensWith(needle) : [];
    for (const other of Object.keys(LISTS).filter(asked)) {
      const { count, of } = index.rows[other];
      found.tokens[other] = tokens.filter(count);
      for (const at of found.tokens[other]) addRows(found.any, of(at));
    }
    return found;
  };

  const search = async () => {
    const mine = ++turn;
    const typed = box.value;
    const asked = parsed(typed);
    if (!needleOf(asked.text)) {
      say("");
      mark({});
      overview.setFilter("search", null);
      return close();
    }
    await prepare();
    if (mine !== turn) return;
    const found = find(asked);
    const nothing = !found.any.includes(1);
    offer(found, asked.kind === "text" || (!asked.kind && nothing));
    mark(found.tokens);
    say("");
    if (asked.kind !== "text" && !nothing) return overview.setFilter("search", (row) => found.any[row] === 1);
    if (asked.kind && asked.kind !== "text") return overview.setFilter("search", () => false);
    clearTimeout(typing);
    typing = setTimeout(() => showAsTyped(asked, mine).catch(failed), 60); // not at every key
  };

  const showAsTyped = async ({ kind, text }, mine) => {
    await showText("search", text, {}, () => mine === turn);
    if (mine !== turn) return;
    const total = overview.rows().length;
    const found = total ? `${total.toLocaleString("en")} ${total === 1 ? "feature shows" : "features show"} it in examples` : "Nothing found";
    tellFound(kind || !total ? found : `No id, label or token of this text: ${found}`);
  };

  const mark = (tokens) =>
    overview.mark(Object.fromEntries(Object.entries(tokens).map(([kind, places]) => [LISTS[kind], new Set(places.map((at) => index.ids[at]))])));

  const failed = (error) => saeVis.say(error.message);

  /* --- what is offered --- */

  const element = (tag, name, ...inside) => saeVis.element(tag, { class: name }, ...inside);

  const hit = (choose, ...inside) => {
    const button = element("button", "hit", ...inside);
    button.type = "button";
    button.addEventListener("click", () => {
      choose();
      close();
    });
    return button;
  };

  const counted = (number) => element("small", "", number.toLocaleString("en"));

  const token = (at, kind) => {
    const shown = element("span", `hit-token ${LISTS[kind]}`);
    shown.innerHTML = overview.tokenHtml(index.ids[at]);
    return shown;
  };

  const group = (title, ...inside) => {
    const made = element("div", "hit-group", element("h3", "", title), element("div", "hit-list", ...inside));
    made.setAttribute("role", "group");
    made.setAttribute("aria-label", title);
    return made;
  };

  const offer = (found, onlyText) => {
    const groups = [];
    if (found.id >= 0) groups.push(group("feature", hit(() => leave(() => (box.focus(), overview.open(overview.ids[found.id]))), String(overview.ids[found.id]))));
    for (const [kind, places] of Object.entries(found.tokens)) {
      const best = places.slice(0, MOST_HITS).map((at) => hit(() => pick(kind, at), token(at, kind), counted(index.rows[kind].count(at))));
      if (places.length > MOST_HITS) best.push(element("small", "", `and ${(places.length - MOST_HITS).toLocaleString("en")} more tokens`));
      if (best.length) groups.push(group(NAMES[kind], ...best));
    }
    if (found.labelled.length) {
      const { text, labelled } = found;
      const rows = new Set(labelled);
      groups.push(group(NAMES.label, hit(() => keep(`search:label:${text}`, rows, `label contains “${text}”`), `“${text}”`, counted(rows.size))));
    }
    if (found.needle.length > 1 && (!found.kind || found.kind === "text")) {
      const where = overview.examples.scope === "top" ? "in the top examples" : NAMES.text;
      groups.push(group(where, hit(() => keepText(found.phrase, where), `“${found.phrase}”`)));
    }
    const total = size(found.any);
    const summary = onlyText ? (found.kind ? "Looking in the examples" : "No id, label or token of this text: looking in the examples") : `${total.toLocaleString("en")} ${total === 1 ? "feature" : "features"}`;
    hits.replaceChildren(element("p", "hit-summary"), ...groups);
    tellFound(summary);
    if (document.activeElement === box) open();
  };

  /* Above what is offered, and for who hears the page: the overview counts aloud itself, where it is shown. */
  const tellFound = (text) => {
    hits.querySelector(".hit-summary").textContent = text;
    const spoken = document.querySelector(".spoken");
    if (spoken && !overview.visible) spoken.textContent = text;
  };

  /* A choice becomes a filter with a chip of its own, and the box is free for the next. */
  const leave = (then) => {
    turn++;
    box.value = "";
    say("");
    mark({});
    overview.setFilter("search", null);
    then();
  };

  const toOverview = () => saeVis.go("overview");

  const keep = (name, filter, label) => leave(() => {
    overview.setFilter(name, filter, { label });
    toOverview();
    overview.focusTable();
  });

  const pick = (kind, at) => {
    const label = element("span", "", `${NAMES[kind]} `, token(at, kind));
    keep(`search:${kind}:${index.ids[at]}`, new Set(index.rows[kind].of(at)), label);
  };

  const checking = new Map(); // name of a filter -> who checks its examples; who chooses it again takes that over

  const keepText = (text, where) => leave(() => {
    const name = `search:text:${text}`;
    const mine = {};
    const isWanted = () => checking.get(name) === mine;
    const isElsewhere = () => document.activeElement !== document.body && !hits.contains(document.activeElement);
    checking.set(name, mine);
    toOverview();
    const options = { label: `${where} “${text}”`, onClear: () => (checking.delete(name), say("")) };
    showText(name, text, options, isWanted).then(() => isWanted() && !isElsewhere() && overview.focusTable(), failed);
  });

  /* --- the box --- */

  const open = () => {
    hits.hidden = false;
  };
  const close = () => {
    hits.hidden = true;
  };

  const step = (event, by) => {
    const stops = [box, ...hits.querySelectorAll("button")];
    event.preventDefault();
    stops[Math.max(0, Math.min(stops.length - 1, stops.indexOf(document.activeElement) + by))].focus();
  };

  const keydown = (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "ArrowDown" && !hits.hidden) step(event, 1);
    else if (event.key === "ArrowUp" && !hits.hidden) step(event, -1);
    else if (event.key === "Escape") {
      event.preventDefault();
      if (hits.hidden && box.value) leave(() => {});
      close();
      box.focus();
    } else if (event.key === "Enter" && event.target === box) enter(event);
    else if (event.key.length === 1 && event.key !== " " && event.target !== box) {
      event.stopPropagation(); // it is typed, and no key of the page
      box.focus();
    }
  };

  /* The feature of this id, or the table of what was found. */
  const enter = async (event) => {
    event.preventDefault();
    if (!box.value.trim()) return;
    await prepare();
    const { kind, text } = parsed(box.value);
    const row = !kind || kind === "id" ? overview.row(/^\d+$/.test(text.trim()) ? Number(text) : -1) : -1;
    close();
    if (row >= 0) return leave(() => overview.open(overview.ids[row]));
    toOverview();
    overview.focusTable();
  };

  box.addEventListener("input", () => search().catch(failed));
  box.addEventListener("focus", () => {
    prepare().catch(failed);
    if (box.value && hits.childElementCount) open();
  });
  box.parentElement.addEventListener("keydown", keydown);
  box.parentElement.addEventListener("focusout", (event) => {
    if (!box.parentElement.contains(event.relatedTarget)) setTimeout(() => box.parentElement.contains(document.activeElement) || close());
  });
  document.addEventListener("pointerdown", (event) => box.parentElement.contains(event.target) || close());
})();
