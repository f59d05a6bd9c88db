// The page: the open data set, the selected pairs, and the address that records both.
const inspector = (() => {
  const {el} = page;
  const STATE = {q: "", tab: "pairs", pair: "", n: 0, look: "side", x: "", y: "", s: ""};
  const TABS = [...views].sort((one, other) => one.order - other.order);
  const HUB = "https://huggingface.co", AT_ONCE = 4;
  const LOOKS = ["side", "diff", "raw"], MAX_NAME = 300;
  const FIRST_PAUSE = 250, LAST_PAUSE = 4000, LONGEST_WAIT = 900000;  // milliseconds

  function readAddress() {
    const params = new URLSearchParams(location.hash.slice(1)), state = {...STATE};
    for (const key of Object.keys(STATE)) if (params.has(key)) state[key] = params.get(key);
    const problems = [];
    const reset = (key, what) => { problems.push(what); state[key] = STATE[key]; };
    const place = Number(state.n);
    if (!Number.isSafeInteger(place) || place < 0) reset("n", "page"); else state.n = place;
    if (!TABS.some(({key}) => key === state.tab)) reset("tab", "tab");
    if (!LOOKS.includes(state.look)) reset("look", "look");
    if (state.s && !schedule.parseChanges(state.s)) reset("s", "edited schedule");
    for (const key of ["x", "y"]) if (state[key].length > MAX_NAME) reset(key, "compared schedule");
    if (state.pair && !/^[0-9a-f]{1,64}$/i.test(state.pair)) reset("pair", "pair");
    return {state, problem: problems.length ? `the address is not valid, and these parts of it are ignored: ${problems.join(", ")}` : null};
  }

  function fragment(state) {
    const params = new URLSearchParams();
    for (const [key, value] of Object.entries(state)) if (value !== STATE[key]) params.set(key, value);
    const text = params.toString();
    return text ? `#${text}` : "";
  }

  function begin(root, server) {
    const host = root.querySelector(".inspector") ?? root;
    const data = () => new URLSearchParams(location.search).get("data") ?? "";
    const live = el("p", {class: "hidden", role: "status", "aria-live": "polite"});
    const toast = el("p", {class: "toast", "aria-hidden": "true", hidden: true});
    let toasting = 0;
    const first = readAddress();
    const app = {state: first.state, D: null, selection: null, place: null};

    app.say = (message) => {
      live.textContent = message;
      toast.textContent = message;
      toast.hidden = false;
      clearTimeout(toasting);
      toasting = setTimeout(() => { toast.hidden = true; }, 4000);
    };

    // Asks again as long as the server has not opened the data set or is busy. `waits` receives the reason.
    async function answer(name, parameters, waits) {
      for (let pause = FIRST_PAUSE, waited = 0; ; waited += pause, pause = Math.min(LAST_PAUSE, 1.5 * pause)) {
        // Gradio returns nothing if the server cannot be reached.
        const response = await server[name]({...parameters, data: data(), fingerprint: app.D?.fingerprint}).catch(() => null);
        if (response === null || response === undefined) throw new Error("the server does not answer: try again");
        if (!response.error) return response;
        if (!response.again || waited > LONGEST_WAIT) throw new Error(response.error);
        if (waited > 1000) waits(response.error);
        await new Promise((done) => setTimeout(done, pause));
      }
    }

    // Returns the whole answer: of a long one, the server returns a part of its JSON text.
    app.ask = async (name, parameters = {}, waits = app.say) => {
      const first = await answer(name, parameters, waits);
      if (first.piece === undefined) return first;
      const step = first.piece.length, pieces = [first.piece];
      let next = step;
      const rest = async () => {
        while (next < first.size) {
          const offset = next;
          next += step;
          const {piece, of} = await answer(name, {...parameters, offset}, waits);
          if (of !== first.of) throw new Error("the data set has changed meanwhile: reload the page");
          pieces[offset / step] = piece;
        }
      };
      await Promise.all(Array.from({length: AT_ONCE}, rest));
      return JSON.parse(pieces.join(""));
    };

    app.file = (path) => new URL(`gradio_api/file=${path.split("/").map(encodeURIComponent).join("/")}`, new URL(".", location.href)).href;

    app.query = () => { try { return queryLanguage.parse(app.state.q); } catch { return {terms: [], sort: null, descending: false}; } };

    // The edited schedule, or the published one if nothing was edited.
    app.spec = () => {
      const published = schedule.read(app.D.facts.schedule);
      return app.state.s ? {...published, ...schedule.parseChanges(app.state.s)} : published;
    };
    app.edit = (spec) => {
      const published = schedule.read(app.D.facts.schedule);
      const changed = Object.fromEntries(Object.entries(spec).filter(([key, value]) => JSON.stringify(value) !== JSON.stringify(published[key])));
      app.set({s: Object.keys(changed).length ? JSON.stringify(changed) : ""});
    };

    let scores = null;
    app.scores = () => {
      scores ??= app.ask("scores").then(async (response) => schedule.prepared({slots: response.slots, ...(await page.unpacked(response))}));
      scores.catch(() => { scores = null; });
      return scores;
    };

    const computed = new Map();
    const compute = async (key, spec) => {
      if (!computed.has(key)) {
        const read = await app.scores();
        if (computed.size > 4) computed.clear();
        computed.set(key, schedule.compute(spec, app.D.rubric, read));
      }
      return computed.get(key);
    };
    // Results that depend on all pairs: the betas of the edited schedule, and the ranks of the gaps.
    app.everywhere = async (always = false) => {
      const found = {published: null, edited: null, problem: null}, published = schedule.read(app.D.facts.schedule);
      try {
        if (always || published.map === "quantile") found.published = await compute("published", published);
        if (app.state.s) found.edited = await compute(app.state.s, app.spec());
      } catch (error) {
        if (!(error instanceof schedule.Refused)) throw error;
        found.problem = error.message;
      }
      return found;
    };

    app.open = async (place) => {
      app.place = place;
      dialog.update();
      const [row] = await app.ask("rows", {places: [place]}).catch(() => [null]);
      if (row && app.place === place) app.set({pair: row.id.slice(0, 16)}, false);
    };
    app.close = () => { app.place = null; app.set({pair: ""}, false); dialog.update(); };

    app.copyLink = (into) => {
      const space = host.dataset.space ?? "";
      const inside = window.parent !== window && document.referrer.startsWith(HUB);
      const base = inside && space ? `${HUB}/spaces/${space}${location.search}` : `${location.origin}${location.pathname}${location.search}`;
      page.copied(`${base}${fragment(app.state)}`, into ?? host, app.say);
    };

    let written = 0;
    function writeAddress() {
      clearTimeout(written);
      written = setTimeout(() => {
        const hash = fragment(app.state);
        history.replaceState(null, "", `${location.pathname}${location.search}${hash}`);
        // A Space is shown in a frame on the Hub, whose page updates its address on this message.
        if (window.parent !== window) window.parent.postMessage({queryString: location.search.slice(1), hash: hash.slice(1)}, HUB);
      }, 120);
    }

    app.set = (more, draw = true) => { app.state = {...app.state, ...more}; writeAddress(); return draw ? update() : Promise.resolve(); };

    const found = new Map(), panes = {}, masks = new Map();
    let dialog = null;

    function maskOf(term) {
      const key = JSON.stringify(term);
      if (!masks.has(key)) {
        if (masks.size > 40) masks.clear();
        masks.set(key, queryLanguage.mask(term, app.D.fields, app.D.count, found));
      }
      return masks.get(key);
    }

    function select(query) {
      const {count, fields} = app.D, termMasks = query.terms.map(maskOf), fails = new Uint8Array(count);
      for (const mask of termMasks) for (let at = 0; at < count; at += 1) fails[at] += 1 - mask[at];
      const passes = new Uint8Array(count), all = new Uint32Array(count);
      let many = 0;
      for (let at = 0; at < count; at += 1) if (fails[at] === 0) { passes[at] = 1; all[many] = at; many += 1; }
      return {query, masks: termMasks, fails, passes, places: queryLanguage.sort(all.slice(0, many), query, fields), problem: null};
    }

    let turn = 0;
    async function chosen() {
      const mine = turn += 1;
      try {
        const query = queryLanguage.parse(app.state.q);
        const wanted = queryLanguage.serverTerms(query).filter(([kind, word]) => !found.has(`${kind} ${word}`));
        if (wanted.length) {
          host.dataset.state = "searching";
          const results = await app.ask("search", {wanted});
          const flags = await Promise.all(results.map((bits) => page.flags(bits, app.D.count)));
          if (found.size > 40) { found.clear(); masks.clear(); }
          wanted.forEach(([kind, word], at) => found.set(`${kind} ${word}`, flags[at]));
        }
        return mine === turn ? select(query) : null;
      } catch (error) {
        if (mine !== turn) return null;
        const nothing = {terms: [], sort: null, descending: false};
        return {...(app.selection ?? select(nothing)), problem: error.message};
      }
    }

    async function update() {
      const selection = await chosen();
      if (!selection) return;
      app.selection = selection;
      const {tab} = app.state;
      for (const {key} of TABS) {
        tabs[key].setAttribute("aria-selected", String(key === tab));
        tabs[key].tabIndex = key === tab ? 0 : -1;
        panels[key].hidden = key !== tab;
      }
      try {
        await panes[tab].update(selection);
        await dialog.update();
        host.dataset.state = "ready";
      } catch (error) {
        host.dataset.state = "error";
        app.say(error.message);
      }
    }

    const tabs = {}, panels = {};

    function shell() {
      const {D} = app, opener = openBox();
      dialog = pair.view(app);
      const strip = el("div", {role: "tablist", class: "tabs", "aria-label": "views"}, TABS.map(({key, label}) => {
        tabs[key] = el("button", {type: "button", role: "tab", id: `tab-${key}`, "aria-controls": `panel-${key}`, text: label, onclick: () => app.set({tab: key})});
        return tabs[key];
      }));
      strip.addEventListener("keydown", (event) => {
        const step = {ArrowRight: 1, ArrowLeft: -1}[event.key];
        if (!step) return;
        const keys = TABS.map(({key}) => key), next = keys[(keys.indexOf(app.state.tab) + step + keys.length) % keys.length];
        app.set({tab: next});
        tabs[next].focus();
      });
      const title = el("h1", {}, D.name, D.commit ? el("span", {class: "soft", text: ` at ${D.commit.slice(0, 12)}`}) : null);
      const share = el("button", {type: "button", text: "copy link", onclick: () => app.copyLink()});
      const built = TABS.map(({key, build}) => {
        panes[key] = build(app);
        panels[key] = el("div", {role: "tabpanel", id: `panel-${key}`, "aria-labelledby": `tab-${key}`, hidden: true}, panes[key].root);
        return panels[key];
      });
      host.replaceChildren(el("header", {class: "top"}, title, opener, share), strip, ...built, dialog.root, live, toast);
    }

    function openBox() {
      const box = el("input", {type: "text", "aria-label": "data set on the Hub", placeholder: "org/name@revision", value: data(), maxlength: "240"});
      const go = () => { const to = new URL(location.href); to.hash = ""; if (box.value.trim()) to.searchParams.set("data", box.value.trim()); else to.searchParams.delete("data"); location.href = to.href; };
      return el("form", {class: "opener", onsubmit: (event) => { event.preventDefault(); go(); }}, box, el("button", {type: "submit", text: "open"}));
    }

    document.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || !app.D) return;
      if (["INPUT", "TEXTAREA", "SELECT"].includes(event.target.tagName) || app.place !== null) return;
      if (event.key === "/") { event.preventDefault(); app.set({tab: "pairs"}).then(() => panes.pairs.focus()); }
      const tab = TABS[Number(event.key) - 1];
      if (tab) app.set({tab: tab.key});
    });
    window.addEventListener("hashchange", async () => {
      if (!app.D) return;
      const {state, problem} = readAddress();
      app.state = state;
      await openNamed();
      await update();
      if (problem) app.say(problem);
    });

    async function openNamed() {
      app.place = null;
      if (!app.state.pair) return;
      try { app.place = (await app.ask("find", {id: app.state.pair})).place; } catch (error) { app.say(error.message); app.state.pair = ""; }
    }

    async function load() {
      host.dataset.state = "loading";
      const wait = el("p", {class: "wait", role: "status", text: data() ? `opening ${data()}…` : "opening the data set…"});
      host.replaceChildren(wait);
      try {
        const response = await app.ask("start", {}, (reason) => { wait.textContent = reason.replace(/: ask again.*/, "…"); }), arrays = await page.unpacked(response);
        const fields = Object.fromEntries(Object.entries(response.fields).map(([name, field]) => [name, {...field, values: arrays[`field ${name}`]}]));
        app.D = {...response, fields, schedules: Object.fromEntries(response.schedules.map((name) => [name, arrays[`schedule ${name}`]]))};
        host.dataset.space = response.space ?? "";
        document.title = `${response.name} · SP2DPO inspector`;
        shell();
        await openNamed();
        await update();
        if (first.problem) app.say(first.problem);
      } catch (error) {
        host.dataset.state = "error";
        host.replaceChildren(el("div", {class: "failed", role: "alert"}, el("h1", {text: "This data set cannot be shown"}), el("p", {text: error.message}), openBox(),
          el("button", {type: "button", text: "try again", onclick: load})));
      }
    }
    load();
  }

  return {begin};
})();
