// Pairs whose beta differs between two schedules.
const movers = (() => {
  const {el, fixed, colour} = page;

  // Returns the pairs whose beta differs between two schedules, largest difference first.
  function find(places, x, y, most) {
    const moved = Array.from(places).filter((at) => Math.abs(y[at] - x[at]) > 1e-6);
    moved.sort((one, other) => Math.abs(y[other] - x[other]) - Math.abs(y[one] - x[one]) || one - other);
    return {count: moved.length, first: moved.slice(0, most)};
  }

  // Returns these pairs as a table; `texts` has their prompts, or is null.
  function table(app, label, names, x, y, first, texts) {
    const {fields} = app.D;
    const rows = first.map((at, number) => {
      const category = fields.category.values[at];
      const open = el("button", {type: "button", class: "open", "data-place": at, onclick: () => app.open(at), text: texts?.[number]?.prompt || texts?.[number]?.id.slice(0, 16) || "open"});
      return [`${y[at] > x[at] ? "+" : ""}${fixed(y[at] - x[at], 4)}`, fixed(x[at], 4), fixed(y[at], 4), category < 0 ? "–"
        : el("span", {class: "tag"}, el("span", {class: "key", style: `background: ${colour(category)}`}), fields.category.levels[category]), open];
    });
    return page.table(label, ["difference", ...names, "category", "prompt"], rows, "movers");
  }

  // Returns means, mean |difference| and correlation of two betas over some pairs.
  function moments(x, y, places) {
    let n = 0, mx = 0, my = 0, apart = 0;
    for (const at of places) { n += 1; mx += x[at]; my += y[at]; apart += Math.abs(x[at] - y[at]); }
    mx /= n; my /= n;
    let xx = 0, yy = 0, xy = 0;
    for (const at of places) { xx += (x[at] - mx) ** 2; yy += (y[at] - my) ** 2; xy += (x[at] - mx) * (y[at] - my); }
    return {mx, my, apart: apart / n, r: xx && yy ? xy / Math.sqrt(xx * yy) : NaN};
  }

  return {find, table, moments};
})();
