// View: the pairs, with a histogram, facets, a search and a table.
const pairs = (() => {
  const {el, fixed, whole, plural, colour, select} = page;
  const PAGE = 50, MEASURES = ["gap", "magnitude", "confidence", "agreement", "spread", "votes", "weight", "margin", "label_smoothing", "reward_margin"];
  // Number fields without a facet: beta has the large histogram, the others repeat what others show.
  const WITHOUT_FACET = ["beta", "signed_gap", "teachers"];
  const TITLES = {
    beta: "beta", gap: "gap", magnitude: "magnitude", confidence: "confidence", agreement: "agreement",
    spread: "spread between teachers", votes: "votes", category: "category", disputed: "label disputed",
    kept: "kept for training", teacher: "reply from", refused: "refused reply from", dissent: "other category from",
    signed_gap: "signed gap", teachers: "teachers", weight: "weight", margin: "margin",
    label_smoothing: "label smoothing", reward_margin: "reward margin", exchanged: "responses exchanged",
  };
  const WORDS = {flag: ["no", "yes"]};
  const COUNTED = ["votes", "teachers"];

  const title = (app, name) => app.D.labels[name] ?? TITLES[name] ?? name;

  // Replaces the values of a field in the query; negated terms of the field stay.
  function changed(app, field, change) {
    const query = app.query();
    const own = query.terms.find((term) => term.field === field && !term.negated);
    const values = change(own ? own.values : []);
    const terms = query.terms.filter((term) => term.field !== field || term.negated);
    if (values.length) terms.splice(own ? query.terms.indexOf(own) : terms.length, 0, {field, values, negated: false});
    app.set({q: queryLanguage.format({...query, terms}), n: 0});
  }

  const ranged = (app, field, range) => changed(app, field, () =>
    (range ? [queryLanguage.value(`${range[0]}..${range[1]}`, false)] : []));

  const toggled = (app, field, word) => changed(app, field, (values) =>
    (values.some((one) => one.word === word) ? values.filter((one) => one.word !== word)
      : [...values, queryLanguage.value(word, wordsOf(app.D.fields[field]).includes(word))]));

  const rangeOf = (query, field) => {
    const term = query.terms.find((one) => one.field === field && !one.negated);
    const one = term?.values.find((value) => value.kind === "range");
    return one ? [one.low, one.high] : null;
  };

  // Returns the pairs that satisfy all terms except those of a field, as flags.
  function others(selection, field) {
    const {query, masks, fails, passes} = selection, own = masks.filter((_, at) => query.terms[at].field === field);
    if (!own.length) return passes;
    const found = new Uint8Array(fails.length);
    for (let at = 0; at < fails.length; at += 1) {
      let left = fails[at];
      for (const mask of own) left -= 1 - mask[at];
      found[at] = left === 0 ? 1 : 0;
    }
    return found;
  }

  function measured(app, name, options) {
    const {D} = app, values = D.fields[name].values;
    const bins = charts.binned(values, options.bins, COUNTED.includes(name));
    if (!bins) return null;
    const groups = options.groups ?? 1, categories = D.fields.category.values;
    const all = new Uint32Array(bins.bins);
    for (let at = 0; at < D.count; at += 1) if (bins.places[at] !== 255) all[bins.places[at]] += 1;
    const chart = charts.histogram({
      name: title(app, name), bins, groups, height: options.height, axis: options.axis,
      chosen: (range, single) => {
        const now = rangeOf(app.query(), name);
        const same = single && now && range[0] === now[0] && range[1] === now[1];
        ranged(app, name, same ? null : range);
      },
    });
    function update(selection) {
      const some = new Uint32Array(bins.bins * groups), passes = others(selection, name), {places} = bins;
      for (let at = 0; at < D.count; at += 1) {
        if (!passes[at] || places[at] === 255) continue;
        some[groups === 1 ? places[at] : places[at] * groups + Math.max(0, categories[at])] += 1;
      }
      chart.draw(all, some, rangeOf(selection.query, name));
    }
    return {root: chart.root, update};
  }

  const wordsOf = (field) => (field.kind === "flag" ? WORDS.flag : field.levels);

  function levelled(app, name) {
    const {D} = app, field = D.fields[name], words = wordsOf(field);
    const missing = field.kind !== "set" && field.values.some((one) => one < 0);
    const shown = missing ? [...words, "missing"] : words;
    const rows = shown.map((word, at) => {
      const count = el("span", {class: "count"}), bar = el("span", {class: "bar"});
      const key = name === "category" && at < words.length ? el("span", {class: "key", style: `background: ${colour(at)}`}) : null;
      const button = el("button", {type: "button", class: "level", "aria-pressed": "false", "data-field": name, "data-word": word,
        onclick: () => toggled(app, name, word)}, bar, key, el("span", {class: "word", text: word}), count);
      return {button, count, bar, word};
    });
    function update(selection) {
      const counts = new Uint32Array(shown.length), passes = others(selection, name), {values} = field;
      for (let at = 0; at < D.count; at += 1) {
        if (!passes[at]) continue;
        const value = values[at];
        if (field.kind === "set") { for (let bit = 0; bit < words.length; bit += 1) if ((value >>> bit) & 1) counts[bit] += 1; }
        else counts[value < 0 ? words.length : value] += 1;
      }
      const most = Math.max(1, ...counts);
      const own = selection.query.terms.find((term) => term.field === name && !term.negated);
      rows.forEach(({button, count, bar, word}, at) => {
        count.textContent = whole(counts[at]);
        bar.style.width = `${(100 * counts[at]) / most}%`;
        button.setAttribute("aria-pressed", String(Boolean(own?.values.some((one) => one.word === word))));
      });
    }
    return {root: el("div", {class: "levels", role: "group", "aria-label": title(app, name)}, rows.map((one) => one.button)), update};
  }

  function facet(app, name, made, open) {
    const clear = el("button", {type: "button", class: "clear", "aria-label": `clear ${title(app, name)}`, text: "clear",
      onclick: (event) => { event.preventDefault(); changed(app, name, () => []); }});
    const root = el("details", {class: "facet", open, "data-facet": name}, el("summary", {}, el("span", {text: title(app, name)}), clear), made.root);
    return {root, update(selection) {
      clear.hidden = !selection.query.terms.some((term) => term.field === name && !term.negated);
      if (root.open) made.update(selection); else root.ontoggle = () => root.open && made.update(app.selection);
    }};
  }

  function facets(app) {
    const {fields} = app.D, varied = (name) => {
      const values = fields[name].values;
      return values.some((value) => value !== values[0] && !(Number.isNaN(value) && Number.isNaN(values[0])));
    };
    const made = [facet(app, "category", levelled(app, "category"), true)];
    for (const name of Object.keys(app.D.labels)) made.push(facet(app, name, levelled(app, name), true));
    for (const name of ["disputed", "kept", "exchanged"]) if (fields[name] && varied(name)) made.push(facet(app, name, levelled(app, name), true));
    const numbers = Object.keys(fields).filter((name) => fields[name].kind === "number" && !WITHOUT_FACET.includes(name));
    for (const name of [...MEASURES.filter((name) => fields[name]), ...numbers.filter((name) => !MEASURES.includes(name))]) {
      if (!varied(name)) continue;
      const chart = measured(app, name, {bins: 30, height: 54, axis: false});
      if (chart) made.push(facet(app, name, chart, ["gap", "agreement", "magnitude", "confidence"].includes(name)));
    }
    for (const name of ["teacher", "dissent", "refused"])
      if (fields[name].values.some((one) => one !== 0)) made.push(facet(app, name, levelled(app, name), name === "dissent"));
    return made;
  }

  function searchBar(app) {
    const box = el("input", {type: "search", class: "query", "aria-label": "filter and search", autocomplete: "off", spellcheck: "false",
      placeholder: 'beta:0.1..0.2 category:safety "some words"', maxlength: "1000"});
    let timer = 0;
    const apply = () => { clearTimeout(timer); app.set({q: box.value, n: 0}); };
    box.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(apply, 180); });
    box.addEventListener("keydown", (event) => { if (event.key === "Enter") apply(); });
    const problem = el("p", {class: "problem", role: "alert", hidden: true});
    return {root: el("div", {class: "search"}, box, problem), box, update(selection) {
      if (document.activeElement !== box) box.value = app.state.q;
      problem.hidden = !selection.problem;
      problem.textContent = selection.problem ?? "";
    }};
  }

  const COLUMNS = [["beta", "beta"], ["gap", "gap"], ["agreement", "agreement"], ["category", "category"]];

  function sorter(app) {
    const choices = [["", "data set order"], ...["beta", "gap", "signed_gap", "magnitude", "confidence", "agreement", "spread", "votes"]
      .filter((name) => app.D.fields[name]).flatMap((name) => [[name, `${title(app, name)}, lowest first`], [`-${name}`, `${title(app, name)}, highest first`]])];
    const node = select("sort", choices, "", (value) => {
      const query = app.query();
      app.set({q: queryLanguage.format({...query, sort: value.replace(/^-/, "") || null, descending: value.startsWith("-")}), n: 0});
    });
    return {root: node, update: ({query}) => { node.value = query.sort ? (query.descending ? "-" : "") + query.sort : ""; }};
  }

  function listing(app) {
    const body = el("tbody"), status = el("p", {class: "status", role: "status"});
    const head = el("tr", {}, COLUMNS.map(([name, text]) => el("th", {scope: "col", class: name, text})),
      ["prompt", "chosen", "rejected"].map((text) => el("th", {scope: "col", class: text, text})));
    const back = el("button", {type: "button", text: "previous", onclick: () => app.set({n: shown - 1})});
    const on = el("button", {type: "button", text: "next", onclick: () => app.set({n: shown + 1})});
    const root = el("div", {class: "listing"}, el("div", {class: "scroll", tabindex: "0", role: "region", "aria-label": "pairs"},
      el("table", {}, el("caption", {class: "hidden", text: "pairs"}), el("thead", {}, head), body)),
      el("div", {class: "pager"}, back, status, on));
    let turn = 0, last = 0, shown = 0;

    const row = (place, texts) => {
      const {fields} = app.D, category = fields.category.values[place], beta = fields.beta.values[place];
      const open = el("button", {type: "button", class: "open", "data-place": place, onclick: () => app.open(place), text: texts.prompt || "(no text)"});
      return el("tr", {onclick: (event) => { if (event.target !== open) app.open(place); }},
        el("td", {class: "beta", text: fixed(beta, 4)}), el("td", {class: "gap", text: fixed(fields.gap.values[place], 3)}),
        el("td", {class: "agreement", text: fixed(fields.agreement.values[place], 2)}),
        el("td", {class: "category"}, category < 0 ? "–" : el("span", {class: "tag"}, el("span", {class: "key", style: `background: ${colour(category)}`}), fields.category.levels[category])),
        el("td", {class: "prompt"}, open), ...["chosen", "rejected"].map((name) => el("td", {class: name}, el("div", {class: "clamp", text: texts[name]}))));
    };

    async function update(selection) {
      const mine = turn += 1, count = selection.places.length, pages = Math.max(1, Math.ceil(count / PAGE));
      const at = Math.min(app.state.n, pages - 1);
      shown = at;
      const places = Array.from(selection.places.slice(at * PAGE, (at + 1) * PAGE));
      back.disabled = at === 0;
      on.disabled = at >= pages - 1;
      status.textContent = count ? `${whole(at * PAGE + 1)} to ${whole(at * PAGE + places.length)} of ${plural(count, "pair")}` : "no pair matches: clear a filter";
      root.classList.toggle("empty", !count);
      if (!count) { body.replaceChildren(); return; }
      root.setAttribute("aria-busy", "true");
      // During brushing, texts are requested only after a pause.
      const rapid = performance.now() - last < 400;
      last = performance.now();
      if (rapid) await new Promise((done) => setTimeout(done, 100));
      if (mine !== turn) return;
      try {
        const texts = await app.ask("rows", {places});
        if (mine !== turn) return;
        body.replaceChildren(...texts.map((one, place) => row(places[place], one)));
      } catch (error) {
        if (mine === turn) status.textContent = error.message;
      } finally {
        if (mine === turn) root.removeAttribute("aria-busy");
      }
    }
    return {root, update};
  }

  function exporter(app) {
    const make = (kind, label) => el("button", {type: "button", text: label, onclick: async (event) => {
      event.target.disabled = true;
      try {
        const response = await app.ask("export", {query: app.state.q, kind});
        page.download(response.name, app.file(response.path));
        app.say(`${plural(response.count, "pair")} exported`);
      } catch (error) { app.say(error.message); } finally { event.target.disabled = false; }
    }});
    return el("div", {class: "buttons"}, make("parquet", "export Parquet"), make("jsonl", "export JSONL"));
  }

  function view(app) {
    const search = searchBar(app), sort = sorter(app), list = listing(app), parts = facets(app);
    const chart = measured(app, "beta", {bins: 54, groups: app.D.fields.category.levels.length, height: 200, axis: true});
    const count = el("strong", {class: "shown", "aria-live": "polite"});
    const clear = el("button", {type: "button", text: "clear all", onclick: () => app.set({q: "", n: 0})});
    const side = el("details", {class: "facets", open: window.innerWidth > 800}, el("summary", {text: "filters"}), parts.map((one) => one.root));
    const root = el("section", {class: "pairs", "aria-label": "pairs"}, search.root,
      el("div", {class: "columns"}, side,
        el("div", {class: "main"},
          el("figure", {class: "chart"}, el("figcaption", {}, "beta, by category"), chart ? chart.root : el("p", {text: "no pair has a beta"})),
          el("div", {class: "bar-line"}, count, sort.root, clear, exporter(app)), list.root)));
    return {root, focus: () => search.box.focus(), update(selection) {
      count.textContent = `${whole(selection.places.length)} of ${plural(app.D.count, "pair")}`;
      clear.disabled = !app.state.q;
      search.update(selection);
      if (selection.problem) return;
      for (const one of [chart, sort, ...parts]) one?.update(selection);
      list.update(selection);
    }};
  }

  return {view};
})();
views.push({key: "pairs", label: "pairs", order: 1, build: pairs.view});
