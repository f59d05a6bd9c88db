// Two schedules beside each other: which pairs they move, and how far.
const compare = (() => {
  const {el, fixed, plural, colour, select, table, labelled} = page;
  const MOVERS = 60;

  // The betas that can be compared: name -> one value for each pair.
  function known(app, everywhere) {
    const {D} = app, found = {published: D.fields.beta.values, ...D.schedules};
    if (everywhere.edited) found.edited = everywhere.edited.beta;
    return found;
  }

  // Pairs by how far they move, farthest first.
  function movers(places, x, y, most) {
    const moved = Array.from(places).filter((at) => Math.abs(y[at] - x[at]) > 1e-6);
    moved.sort((one, other) => Math.abs(y[other] - x[other]) - Math.abs(y[one] - x[one]) || one - other);
    return {count: moved.length, first: moved.slice(0, most)};
  }

  function moversTable(app, label, names, x, y, first, said) {
    const {fields} = app.D;
    const rows = first.map((at, number) => {
      const category = fields.category.values[at];
      const open = el("button", {type: "button", class: "open", "data-place": at, onclick: () => app.open(at), text: said?.[number]?.prompt || said?.[number]?.id.slice(0, 16) || "open"});
      return [`${y[at] > x[at] ? "+" : ""}${fixed(y[at] - x[at], 4)}`, fixed(x[at], 4), fixed(y[at], 4), category < 0 ? "–"
        : el("span", {class: "tag"}, el("span", {class: "key", style: `background: ${colour(category)}`}), fields.category.levels[category]), open];
    });
    return table(label, ["moved by", ...names, "category", "prompt"], rows, "movers");
  }

  function moments(x, y, places) {
    let n = 0, mx = 0, my = 0, apart = 0;
    for (const at of places) { n += 1; mx += x[at]; my += y[at]; apart += Math.abs(x[at] - y[at]); }
    mx /= n; my /= n;
    let xx = 0, yy = 0, xy = 0;
    for (const at of places) { xx += (x[at] - mx) ** 2; yy += (y[at] - my) ** 2; xy += (x[at] - mx) * (y[at] - my); }
    return {mx, my, apart: apart / n, r: xx && yy ? xy / Math.sqrt(xx * yy) : NaN};
  }

  function view(app) {
    const body = el("div", {class: "compare-body"}), root = el("section", {class: "compare", "aria-label": "compare"}, body);
    let turn = 0;
    async function update(selection) {
      const mine = turn += 1, everywhere = await app.everywhere();
      if (mine !== turn) return;
      const betas = known(app, everywhere), names = Object.keys(betas);
      const x = names.includes(app.state.x) ? app.state.x : names[0];
      const y = names.includes(app.state.y) ? app.state.y : names.find((one) => one !== x && one !== "default") ?? names[0];
      const choices = names.map((one) => [one, one]);
      const picks = el("div", {class: "bar-line"}, labelled("from", select("from schedule", choices, x, (value) => app.set({x: value}))),
        labelled("to", select("to schedule", choices, y, (value) => app.set({y: value}))),
        el("p", {class: "soft", text: `${plural(selection.places.length, "pair")} chosen by the filters`}));
      if (names.length < 2 || x === y) {
        body.replaceChildren(picks, el("p", {class: "note", text: names.length < 2
          ? "The data set holds one schedule. Edit it under “schedule”, and compare it here." : "Choose two different schedules."}));
        return;
      }
      const one = betas[x], other = betas[y];
      const places = selection.places.filter((at) => !Number.isNaN(one[at]) && !Number.isNaN(other[at]));
      if (!places.length) { body.replaceChildren(picks, el("p", {class: "note", text: "No chosen pair has a beta under both."})); return; }
      const found = movers(places, one, other, MOVERS), m = moments(one, other, places);
      let said = null;
      try { said = await app.ask("rows", {places: found.first}); } catch { said = null; }
      if (mine !== turn) return;
      const chart = charts.scatter({x: one, y: other, names: [x, y], places, pick: (at) => app.open(at)});
      chart.root.setAttribute("aria-label", `${x} against ${y}, ${plural(places.length, "pair")}; click for the nearest pair`);
      body.replaceChildren(picks, el("div", {class: "sides"},
        el("figure", {class: "chart"}, el("figcaption", {}, `${x} against ${y}; click a point`), chart.root),
        el("div", {}, el("dl", {class: "facts"}, [["pairs with both", plural(places.length, "pair")], [`mean of ${x}`, fixed(m.mx, 4)], [`mean of ${y}`, fixed(m.my, 4)],
          ["mean |difference|", fixed(m.apart, 4)], ["correlation", fixed(m.r, 3)], ["pairs that move", plural(found.count, "pair")]]
          .flatMap(([key, value]) => [el("dt", {text: key}), el("dd", {text: value})])))),
        el("h3", {text: "movers"}), found.count ? moversTable(app, "movers", [x, y], one, other, found.first, said) : el("p", {class: "note", text: "No pair moves."}));
    }
    return {root, update};
  }

  return {view, movers, moversTable, moments};
})();
