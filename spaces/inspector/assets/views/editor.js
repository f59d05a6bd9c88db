// View: edit the schedule, see all betas change, and copy the YAML for `sp2dpo schedule`.
const editor = (() => {
  const {el, fixed, percent, plural, labelled, select} = page;
  const BINS = 54, MAX_BETAS = 65536;  // betas in a request, as in api.py

  const number = (label, value, change, step = "any") => {
    const node = el("input", {type: "number", step, min: "0", "aria-label": label, value: String(value)});
    node.addEventListener("input", () => { if (node.value !== "") change(Number(node.value)); });
    return labelled(label, node);
  };

  function form(app, scores, spec, change) {
    const words = (all) => all.map((one) => [one, one]);
    const ways = (names) => words([...schedule.WAYS.filter((one) => one !== "trimmed" || names.length >= 5), ...(names.length > 1 ? names : [])]);
    const own = (name) => {
      const ends = spec.envelopes[name];
      const set = (more) => change({envelopes: {...spec.envelopes, [name]: {betaMin: spec.betaMin, betaMax: spec.betaMax, ...ends, ...more}}});
      const box = el("input", {type: "checkbox", checked: Boolean(ends), "aria-label": `own envelope for ${name}`, onchange: () => {
        if (box.checked) { set({}); return; }
        const left = {...spec.envelopes};
        delete left[name];
        change({envelopes: left});
      }});
      return el("div", {class: "envelope"}, el("label", {}, box, ` ${name}`),
        ends ? number(`${name} beta_min`, ends.betaMin, (betaMin) => set({betaMin})) : null,
        ends ? number(`${name} beta_max`, ends.betaMax, (betaMax) => set({betaMax})) : null);
    };
    return el("form", {class: "schedule-form", onsubmit: (event) => event.preventDefault()},
      number("beta_min", spec.betaMin, (betaMin) => change({betaMin})), number("beta_max", spec.betaMax, (betaMax) => change({betaMax})),
      number("quorum", spec.quorum, (quorum) => change({quorum}), "1"),
      labelled("estimate", select("estimate", words(scores.expected_magnitude ? ["sampled", "expected"] : ["sampled"]), spec.estimate, (estimate) => change({estimate}))),
      labelled("gap", select("gap", words(schedule.GAPS), spec.gap, (gap) => change({gap}))),
      spec.gap === "shrink" ? number("m0", spec.m0, (m0) => change({m0})) : null,
      labelled("over_variants", select("over_variants", ways(scores.variants), spec.overVariants, (overVariants) => change({overVariants}))),
      labelled("over_teachers", select("over_teachers", ways(scores.teachers), spec.overTeachers, (overTeachers) => change({overTeachers}))),
      labelled("map", select("map", words(schedule.MAPS), spec.map, (map) => change({map}))),
      spec.map === "power" ? number("exponent", spec.exponent, (exponent) => change({exponent})) : null,
      el("fieldset", {}, el("legend", {text: "envelopes by category"}), Object.keys(app.D.rubric.categories).map(own)));
  }

  function counts(values, low, high) {
    const found = new Uint32Array(BINS), width = (high - low) / BINS || 1;
    for (const one of values) if (!Number.isNaN(one)) found[Math.min(BINS - 1, Math.max(0, Math.floor((one - low) / width + 1e-6)))] += 1;
    return found;
  }

  // Returns one chart with the published histogram behind the edited one.
  function both(published, edited) {
    let low = Infinity, high = -Infinity;
    for (const values of [published, edited]) for (const one of values) if (!Number.isNaN(one)) { if (one < low) low = one; if (one > high) high = one; }
    if (!(low < high)) return null;
    const bins = {low, high, bins: BINS, width: (high - low) / BINS, whole: false};
    const back = counts(published, low, high), front = counts(edited, low, high), most = Math.max(...back, ...front);
    const chart = charts.histogram({name: "beta as edited", bins, groups: 1, height: 200, chosen: null});
    chart.draw(back, front, null, most);
    return chart.root;
  }

  function summary(app, beta, spec) {
    const known = beta.filter((one) => !Number.isNaN(one)), n = known.length || 1;
    const at = (end) => known.filter((one) => Math.abs(one - end) < 1e-9).length / n;
    const mean = known.reduce((sum, one) => sum + one, 0) / n, inverse = known.reduce((sum, one) => sum + 1 / one, 0) / n;
    return el("dl", {class: "facts"}, [["pairs with a beta", plural(known.length, "pair")], ["mean", fixed(mean, 4)], ["harmonic mean", fixed(1 / inverse, 4)],
      ["at beta_min", percent(at(spec.betaMin))], ["at beta_max", percent(at(spec.betaMax))]].flatMap(([key, value]) => [el("dt", {text: key}), el("dd", {"data-fact": key, text: value})]));
  }

  function view(app) {
    const problem = el("p", {class: "problem", role: "alert", hidden: true}), fields = el("div"), result = el("div", {"aria-live": "off"});
    const yaml = el("pre", {class: "yaml", tabindex: "0", "aria-label": "schedule as YAML"});
    const copy = el("button", {type: "button", text: "copy YAML", onclick: () => page.copied(yaml.textContent, root, app.say)});
    const save = el("button", {type: "button", text: "download betas", onclick: () => download()});
    const reset = el("button", {type: "button", text: "reset", onclick: () => { shaped = ""; app.set({s: ""}); }});
    const root = el("section", {class: "editor", "aria-label": "schedule"}, el("div", {class: "columns"},
      el("div", {class: "side"}, fields, problem, el("div", {class: "buttons"}, copy, save, reset), yaml),
      el("div", {class: "main"}, result)));
    let turn = 0, shaped = "";

    async function download() {
      const {edited, published} = await app.everywhere(true);
      save.disabled = true;
      try {
        const {beta} = edited ?? published;
        let response = {file: ""};
        for (let first = 0; first < beta.length; first += MAX_BETAS)
          response = await app.ask("betas", {values: page.base64(beta.slice(first, first + MAX_BETAS).buffer), first, file: response.file});
        const written = await fetch(app.file(response.path));
        if (!written.ok) throw new Error("the server does not answer: try again");
        page.download(response.name, await written.blob());
        app.say("betas.parquet downloaded");
      } catch (error) { app.say(error.message); } finally { save.disabled = false; }
    }

    // Rebuilds the form only when its set of fields changes, so that typing is not interrupted.
    function shape(spec, scores) {
      const key = JSON.stringify([spec.gap === "shrink", spec.map === "power", Object.keys(spec.envelopes), app.state.s === ""]);
      if (key === shaped) return;
      shaped = key;
      const label = fields.contains(document.activeElement) ? document.activeElement.getAttribute("aria-label") : null;
      fields.replaceChildren(form(app, scores, spec, (more) => app.edit({...app.spec(), ...more})));
      if (label) fields.querySelector(`[aria-label="${CSS.escape(label)}"]`)?.focus();
    }

    async function update() {
      const mine = turn += 1;
      const scores = await app.scores();
      if (mine !== turn) return;
      const spec = app.spec();
      shape(spec, scores);
      yaml.textContent = schedule.written(spec);
      const everywhere = await app.everywhere();
      if (mine !== turn) return;
      problem.hidden = !everywhere.problem;
      problem.textContent = everywhere.problem ?? "";
      const broken = Boolean(everywhere.problem);
      copy.disabled = save.disabled = broken;
      if (broken) return;
      const before = app.D.fields.beta.values, after = everywhere.edited?.beta ?? before;
      const every = Uint32Array.from(before, (_, at) => at).filter((at) => !Number.isNaN(before[at]) && !Number.isNaN(after[at]));
      const found = movers.find(every, before, after, 30);
      const paint = (texts) => result.replaceChildren(
        el("figure", {class: "chart"}, el("figcaption", {}, "betas of the edited schedule (in front) and of the published one (behind)"), both(before, after) ?? el("p", {text: "all betas are equal"})),
        summary(app, after, spec), el("h3", {text: `pairs that differ: ${found.count.toLocaleString("en-US")}`}),
        found.count ? movers.table(app, "largest differences", ["published", "edited"], before, after, found.first, texts) : el("p", {class: "note", text: "No beta differs."}));
      paint(null);
      if (!found.count) return;
      try {
        const texts = await app.ask("rows", {places: found.first});
        if (mine === turn) paint(texts);
      } catch { /* the table is usable without the prompts */ }
    }
    return {root, update};
  }

  return {view};
})();
views.push({key: "schedule", label: "schedule", order: 3, build: editor.view});
