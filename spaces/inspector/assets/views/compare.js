// View: two schedules compared, and the pairs whose beta differs.
const compare = (() => {
  const {el, fixed, plural, select, labelled} = page;
  const MOVERS = 60;

  // Returns the betas that can be compared, by name: one value for each pair.
  function namedBetas(app, everywhere) {
    const {D} = app, found = {published: D.fields.beta.values, ...D.schedules};
    if (everywhere.edited) found.edited = everywhere.edited.beta;
    return found;
  }

  function view(app) {
    const body = el("div", {class: "compare-body"}), root = el("section", {class: "compare", "aria-label": "compare"}, body);
    let turn = 0;
    async function update(selection) {
      const mine = turn += 1, everywhere = await app.everywhere();
      if (mine !== turn) return;
      const betas = namedBetas(app, everywhere), names = Object.keys(betas);
      const x = names.includes(app.state.x) ? app.state.x : names[0];
      const y = names.includes(app.state.y) ? app.state.y : names.find((one) => one !== x && one !== "default") ?? names[0];
      const choices = names.map((one) => [one, one]);
      const picks = el("div", {class: "bar-line"}, labelled("from", select("from schedule", choices, x, (value) => app.set({x: value}))),
        labelled("to", select("to schedule", choices, y, (value) => app.set({y: value}))),
        el("p", {class: "soft", text: `${plural(selection.places.length, "pair")} selected by the filters`}));
      if (names.length < 2 || x === y) {
        body.replaceChildren(picks, el("p", {class: "note", text: names.length < 2
          ? "The data set has one schedule. Edit it under “schedule” to compare it here." : "Choose two different schedules."}));
        return;
      }
      const one = betas[x], other = betas[y];
      const places = selection.places.filter((at) => !Number.isNaN(one[at]) && !Number.isNaN(other[at]));
      if (!places.length) { body.replaceChildren(picks, el("p", {class: "note", text: "No selected pair has a beta under both schedules."})); return; }
      const found = movers.find(places, one, other, MOVERS), m = movers.moments(one, other, places);
      let texts = null;
      try { texts = await app.ask("rows", {places: found.first}); } catch { texts = null; }
      if (mine !== turn) return;
      const chart = charts.scatter({x: one, y: other, names: [x, y], places, pick: (at) => app.open(at)});
      chart.root.setAttribute("aria-label", `${x} against ${y}, ${plural(places.length, "pair")}; click to open the nearest pair`);
      body.replaceChildren(picks, el("div", {class: "sides"},
        el("figure", {class: "chart"}, el("figcaption", {}, `${x} against ${y}; click a point to open its pair`), chart.root),
        el("div", {}, el("dl", {class: "facts"}, [["pairs with both", plural(places.length, "pair")], [`mean of ${x}`, fixed(m.mx, 4)], [`mean of ${y}`, fixed(m.my, 4)],
          ["mean |difference|", fixed(m.apart, 4)], ["correlation", fixed(m.r, 3)], ["pairs that differ", plural(found.count, "pair")]]
          .flatMap(([key, value]) => [el("dt", {text: key}), el("dd", {text: value})])))),
        el("h3", {text: "largest differences"}), found.count ? movers.table(app, "largest differences", [x, y], one, other, found.first, texts) : el("p", {class: "note", text: "No beta differs."}));
    }
    return {root, update};
  }

  return {view};
})();
views.push({key: "compare", label: "compare", order: 2, build: compare.view});
