// View: the teachers, their agreement, the scores of each, and refused replies.
const teachers = (() => {
  const {el, svg, fixed, percent, whole, table, colour, short} = page;

  // Returns the gap and the category that each teacher gives each pair; NaN and -1 without a reply.
  function readings(spec, rubric, scores) {
    const count = scores.counts.length, many = scores.teachers.length, categories = Object.keys(rubric.categories).length;
    const gap = scores.teachers.map(() => new Float64Array(count).fill(NaN)), category = scores.teachers.map(() => new Int8Array(count).fill(-1));
    const magnitude = scores.teachers.map(() => new Float64Array(rubric.magnitude.max - rubric.magnitude.min + 1));
    const named = scores.teachers.map(() => new Float64Array(categories));
    const gapOf = schedule.reader(spec, rubric, scores), variants = scores.variants.length;
    const sums = new Float64Array(many * variants), seen = new Uint16Array(many * variants), votes = new Uint16Array(many * categories), inner = new Float64Array(variants);
    for (let pair = 0; pair < count; pair += 1) {
      sums.fill(0); seen.fill(0); votes.fill(0);
      for (let at = scores.starts[pair]; at < scores.starts[pair + 1]; at += 1) {
        const slot = scores.slot[at], teacher = scores.teacherOf[slot], cell = teacher * variants + scores.variantOf[slot];
        const one = gapOf(at);
        if (!Number.isNaN(one)) { sums[cell] += one; seen[cell] += 1; }
        votes[teacher * categories + scores.category[at]] += 1;
        magnitude[teacher][scores.magnitude[at]] += 1;
        named[teacher][scores.category[at]] += 1;
      }
      for (let teacher = 0; teacher < many; teacher += 1) {
        let read = 0, best = -1, most = 0;
        for (let variant = 0; variant < variants; variant += 1) {
          const cell = teacher * variants + variant;
          if (seen[cell]) { inner[read] = sums[cell] / seen[cell]; read += 1; }
        }
        if (read) gap[teacher][pair] = schedule.combine(inner, read, schedule.WAYS.includes(spec.overVariants) ? spec.overVariants : "median");
        for (let one = 0; one < categories; one += 1) if (votes[teacher * categories + one] > most) { most = votes[teacher * categories + one]; best = one; }
        category[teacher][pair] = best;
      }
    }
    return {gap, category, magnitude, named};
  }

  function ranks(values) {
    const order = Uint32Array.from(values, (_, at) => at).sort((one, other) => values[one] - values[other]), found = new Float64Array(values.length);
    for (let from = 0; from < order.length;) {
      let to = from;
      while (to < order.length && values[order[to]] - values[order[from]] < 1e-9) to += 1;
      for (let at = from; at < to; at += 1) found[order[at]] = (from + to + 1) / 2;
      from = to;
    }
    return found;
  }

  // Returns Spearman's rho over the pairs that both have.
  function rho(one, other) {
    const both = [[], []];
    for (let at = 0; at < one.length; at += 1) if (!Number.isNaN(one[at]) && !Number.isNaN(other[at])) { both[0].push(one[at]); both[1].push(other[at]); }
    if (both[0].length < 3) return NaN;
    const [x, y] = both.map((values) => ranks(Float64Array.from(values)));
    return movers.moments(x, y, x.map((_, at) => at)).r;
  }

  function same(one, other) {
    let both = 0, alike = 0;
    for (let at = 0; at < one.length; at += 1) if (one[at] >= 0 && other[at] >= 0) { both += 1; alike += one[at] === other[at] ? 1 : 0; }
    return both ? alike / both : NaN;
  }

  // Compares each teacher's gaps with the mean of the others': mean difference and rank correlation.
  function apart(gap) {
    return gap.map((own, teacher) => {
      const rest = Float64Array.from(own, (_, at) => {
        const gaps = gap.filter((_, other) => other !== teacher).map((one) => one[at]).filter((one) => !Number.isNaN(one));
        return gaps.length ? gaps.reduce((sum, one) => sum + one, 0) / gaps.length : NaN;
      });
      let n = 0, bias = 0;
      for (let at = 0; at < own.length; at += 1) if (!Number.isNaN(own[at]) && !Number.isNaN(rest[at])) { n += 1; bias += own[at] - rest[at]; }
      return {bias: n ? bias / n : NaN, rho: rho(own, rest)};
    });
  }

  function bars(label, values, names, colours) {
    const most = Math.max(1, ...values), width = 220, high = 60, step = width / values.length, total = values.reduce((sum, one) => sum + one, 0) || 1;
    return svg("svg", {class: "bars", viewBox: `0 0 ${width} ${high}`, role: "img", "aria-label": `${label}: ${names.map((one, at) => `${one} ${percent(values[at] / total)}`).join(", ")}`},
      Array.from(values, (one, at) => svg("rect", {x: at * step + 1, width: Math.max(1, step - 2), y: high - (one / most) * high, height: (one / most) * high, style: `fill: ${colours ? colour(at) : "var(--accent)"}`},
        svg("title", {text: `${names[at]}: ${whole(one)}`}))));
  }

  function matrix(label, names, cell, low) {
    const shade = (value) => (Number.isNaN(value) ? "" : `--share: ${Math.round(100 * Math.min(1, Math.max(0, (value - low) / (1 - low))))}%`);
    return el("div", {}, el("h4", {text: label}), table(label, ["", ...names], names.map((name, row) => [name,
      ...names.map((_, column) => (row === column ? "" : el("span", {class: "shade", style: shade(cell(row, column)), text: fixed(cell(row, column), 2)})))]), "matrix"));
  }

  function view(app) {
    const root = el("section", {class: "teachers", "aria-label": "teachers"});
    let drawn = "";
    async function update() {
      const key = app.state.s || "published";
      if (key === drawn) return;
      drawn = key;
      root.replaceChildren(el("p", {class: "note", text: "reading all replies…"}));
      const scores = await app.scores(), {rubric, facts} = app.D;
      const everywhere = await app.everywhere();
      const spec = everywhere.problem ? schedule.read(facts.schedule) : app.spec();
      const names = scores.teachers, read = readings(spec, rubric, scores), others = apart(read.gap);
      const categories = Object.keys(rubric.categories), steps = Array.from(read.magnitude[0] ?? [], (_, at) => String(rubric.magnitude.min + at));
      const factsByName = Object.fromEntries(facts.teachers.map((one) => [one.name, one]));
      const rows = names.map((name, at) => {
        const one = factsByName[name] ?? {}, refused = Object.entries(one.refused ?? {});
        const outlier = names.length > 2 && (others[at].rho < 0.3 || Math.abs(others[at].bias) > 0.2);
        const find = (field) => el("button", {type: "button", text: `${field === "dissent" ? "where it differs" : "refused"}`, onclick: () => app.set({tab: "pairs", q: `${field}:"${name.replace(/[\\"]/g, "\\$&")}"`, n: 0})});
        return [el("div", {}, el("strong", {text: name}), outlier ? el("span", {class: "outlier", text: "outlier"}) : null, el("div", {class: "soft", text: one.model ?? ""})),
          whole(one.kept ?? 0), refused.length ? el("div", {}, refused.map(([reason, count]) => el("div", {text: `${reason} ${whole(count)}`})), find("refused")) : "0",
          bars(`magnitudes of ${name}`, read.magnitude[at], steps), bars(`categories of ${name}`, read.named[at], categories, true),
          names.length > 1 ? fixed(others[at].bias, 3) : "–", names.length > 1 ? fixed(others[at].rho, 2) : "–", find("dissent")];
      });
      const alpha = facts.agreement?.teachers ?? {};
      const known = Object.entries(alpha).filter(([, one]) => one && typeof one.value === "number");
      root.replaceChildren(el("h2", {text: "teachers"}),
        table("teachers", ["teacher", "kept", "refused", "magnitude", "category", "gap minus the others'", "rho with the others", ""], rows, "teacher-table"),
        names.length > 1 ? el("div", {class: "sides"}, matrix("same category", names, (row, column) => same(read.category[row], read.category[column]), 0),
          matrix("rank correlation of gaps", names, (row, column) => rho(read.gap[row], read.gap[column]), 0)) : el("p", {class: "note", text: "There is only one teacher, so there is nothing to compare."}),
        known.length ? el("p", {class: "soft", text: `Krippendorff's alpha between teachers: ${known.map(([what, one]) => `${what} ${short(one.value)}`).join(", ")}.`}) : null);
    }
    return {root, update};
  }

  return {view};
})();
views.push({key: "teachers", label: "teachers", order: 4, build: teachers.view});
