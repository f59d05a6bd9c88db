// Charts: a histogram with a selectable range, and a scatter plot of two schedules.
const charts = (() => {
  const {el, svg, short, whole, colour} = page;

  // Returns bins of one number over all pairs: its range, and the bin of each pair (255: none).
  function binned(values, most, integers) {
    let low = Infinity, high = -Infinity;
    for (let at = 0; at < values.length; at += 1) {
      const one = values[at];  // NaN is neither below nor above
      if (one < low) low = one;
      if (one > high) high = one;
    }
    if (low > high) return null;
    if (low === high) { low -= integers ? 0.5 : 0.005; high += integers ? 0.5 : 0.005; }
    let bins = most;
    if (integers && high - low + 1 <= most) { low = Math.floor(low) - 0.5; high = Math.ceil(high) + 0.5; bins = high - low; }
    const width = (high - low) / bins, places = new Uint8Array(values.length);
    for (let at = 0; at < values.length; at += 1)
      places[at] = Number.isNaN(values[at]) ? 255 : Math.min(bins - 1, Math.max(0, Math.floor((values[at] - low) / width + 1e-6)));
    return {low, high, bins, width, places, whole: integers && bins === high - low};
  }

  const ticks = (low, high) => {
    const rough = (high - low) / 5, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((one) => one * power).find((one) => one >= rough);
    const found = [];
    for (let at = Math.ceil(low / step - 1e-9); at * step <= high + 1e-9; at += 1) found.push(Number((at * step).toPrecision(12)));
    return found;
  };

  // Returns a histogram as wide as its container. `chosen(range or null, isSingleBar)` is called when a
  // range [low, high] is selected; with `chosen` null, the histogram cannot be selected.
  function histogram({name, bins, groups, height = 190, axis = true, chosen}) {
    const left = axis ? 46 : 2, right = axis ? 12 : 2, top = 8, bottom = axis ? 24 : 3, tall = height - top - bottom;
    const back = svg("g", {class: "all"}), front = svg("g", {}), scale = svg("g", {class: "axis"}), grid = svg("g", {class: "axis"});
    const brush = svg("rect", {class: "brush", y: top, height: tall});
    const root = svg("svg", {class: `histogram ${chosen ? "" : "still"}`, role: "img", "data-name": name, tabindex: chosen ? "0" : null}, grid, scale, back, front, brush);
    const backs = Array.from({length: bins.bins}, (_, bin) => svg("rect", {"data-bin": bin}));
    const fronts = Array.from({length: bins.bins * groups}, (_, cell) => svg("rect", {style: `fill: ${groups === 1 ? "var(--accent)" : colour(cell % groups)}`}));
    back.append(...backs);
    front.append(...fronts);
    let width = 0, inner = 0, step = 0, last = null;
    const x = (value) => left + ((value - bins.low) / (bins.high - bins.low)) * inner;

    function layout(wide) {
      width = wide; inner = width - left - right; step = inner / bins.bins;
      root.setAttribute("viewBox", `0 0 ${width} ${height}`);
      root.setAttribute("height", height);
      const gap = Math.min(1.5, step / 6);
      backs.forEach((rect, bin) => { rect.setAttribute("x", left + bin * step + gap / 2); rect.setAttribute("width", step - gap); });
      fronts.forEach((rect, cell) => { rect.setAttribute("x", left + Math.floor(cell / groups) * step + gap / 2); rect.setAttribute("width", step - gap); });
      if (axis) scale.replaceChildren(...ticks(bins.low, bins.high).flatMap((one) => [
        svg("line", {x1: x(one), x2: x(one), y1: top + tall, y2: top + tall + 4}),
        svg("text", {x: x(one), y: height - 5, "text-anchor": "middle", text: short(one)})]));
      if (last) draw(...last);
    }

    function draw(all, some, range, most = Math.max(1, ...all)) {
      last = [all, some, range, most];
      if (!width) return;
      for (let bin = 0; bin < bins.bins; bin += 1) {
        const high = (all[bin] / most) * tall;
        backs[bin].setAttribute("y", top + tall - high);
        backs[bin].setAttribute("height", high);
        let up = top + tall;
        for (let group = 0; group < groups; group += 1) {
          const part = (some[bin * groups + group] / most) * tall, rect = fronts[bin * groups + group];
          up -= part;
          rect.setAttribute("y", up);
          rect.setAttribute("height", part);
        }
      }
      if (axis) grid.replaceChildren(...ticks(0, most).filter((one) => Number.isInteger(one) && one > 0).flatMap((one) => {
        const y = top + tall - (one / most) * tall;
        return [svg("line", {x1: left, x2: width - right, y1: y, y2: y}), svg("text", {x: left - 6, y: y + 4, "text-anchor": "end", text: whole(one)})];
      }));
      const from = range ? Math.max(left, x(Math.max(range[0], bins.low))) : 0;
      const to = range ? Math.min(width - right, x(Math.min(range[1], bins.high))) : 0;
      brush.setAttribute("x", from);
      brush.setAttribute("width", range ? Math.max(2, to - from) : 0);
      const total = some.reduce((sum, one) => sum + one, 0);
      root.setAttribute("aria-label", `${name}: ${whole(total)} pairs from ${short(bins.low)} to ${short(bins.high)}` +
        (range ? `, selected ${short(range[0])} to ${short(range[1])}` : "") + (chosen ? ". Drag to select a range; the arrow keys move it, Escape clears it." : "."));
    }

    new ResizeObserver(() => {
      const wide = Math.round(root.getBoundingClientRect().width);
      if (wide && Math.abs(wide - width) > 1) layout(wide);
    }).observe(root);
    if (chosen) brushed(root, bins, () => ({width, left, step}), chosen);
    return {root, draw};
  }

  function brushed(root, bins, placed, chosen) {
    const edge = (bin) => (bins.whole ? Math.round(bins.low + 0.5 + bin) : Number((bins.low + bin * bins.width).toPrecision(4)));
    const rangeOf = (one, other) => {
      const [from, to] = one < other ? [one, other] : [other, one];
      return bins.whole ? [edge(from), edge(to)] : [edge(from), edge(to + 1)];
    };
    let start = null, current = null, keyed = null;
    const binOf = (event) => {
      const box = root.getBoundingClientRect(), {width, left, step} = placed();
      return Math.min(bins.bins - 1, Math.max(0, Math.floor((((event.clientX - box.left) / box.width) * width - left) / step)));
    };
    root.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      root.setPointerCapture(event.pointerId);
      start = current = binOf(event);
      event.preventDefault();
      root.focus({preventScroll: true});
    });
    root.addEventListener("pointermove", (event) => {
      if (start === null || binOf(event) === current) return;
      current = binOf(event);
      chosen(rangeOf(start, current), false);
    });
    root.addEventListener("pointerup", () => {
      if (start === null) return;
      if (start === current) chosen(rangeOf(start, current), true);
      start = null;
    });
    root.addEventListener("pointercancel", () => { start = null; });
    root.addEventListener("keydown", (event) => {
      if (event.key === "Escape") { keyed = null; chosen(null, false); event.stopPropagation(); return; }
      const move = {ArrowLeft: -1, ArrowRight: 1}[event.key];
      if (!move) return;
      const [from, to] = keyed ?? (move > 0 ? [-1, -1] : [bins.bins, bins.bins]);
      const next = Math.min(bins.bins - 1, Math.max(0, to + move));
      keyed = [event.shiftKey ? Math.max(0, from) : next, next];
      chosen(rangeOf(...keyed), false);
      event.preventDefault();
      event.stopPropagation();
    });
  }

  // Returns a plot of two betas for every pair: points if there are few pairs, shaded cells otherwise.
  function scatter({x, y, names, places, pick}) {
    const size = 460, margin = 46, inner = size - margin - 10;
    const canvas = el("canvas", {class: "scatter", width: size * 2, height: size * 2, role: "img", tabindex: "0"});
    const context = canvas.getContext("2d");
    let low = Infinity, high = -Infinity;
    for (const at of places) for (const one of [x[at], y[at]]) { if (one < low) low = one; if (one > high) high = one; }
    if (!(low < high)) { low -= 0.01; high += 0.01; }
    const pad = (high - low) * 0.03;
    low -= pad; high += pad;
    const across = (value) => margin + ((value - low) / (high - low)) * inner;
    const upward = (value) => size - margin - ((value - low) / (high - low)) * inner;
    const style = (name) => getComputedStyle(canvas).getPropertyValue(name).trim() || "gray";

    function draw() {
      context.setTransform(2, 0, 0, 2, 0, 0);
      context.clearRect(0, 0, size, size);
      context.strokeStyle = style("--line"); context.fillStyle = style("--soft"); context.lineWidth = 1;
      context.font = "12px system-ui, sans-serif";
      for (const tick of ticks(low, high)) {
        context.beginPath();
        context.moveTo(across(tick), upward(low)); context.lineTo(across(tick), upward(high));
        context.moveTo(across(low), upward(tick)); context.lineTo(across(high), upward(tick));
        context.stroke();
        context.textAlign = "center"; context.fillText(short(tick), across(tick), size - margin + 16);
        context.textAlign = "right"; context.fillText(short(tick), margin - 6, upward(tick) + 4);
      }
      context.textAlign = "center"; context.fillText(names[0], margin + inner / 2, size - 8);
      context.save(); context.translate(12, size - margin - inner / 2); context.rotate(-Math.PI / 2);
      context.fillText(names[1], 0, 0); context.restore();
      context.strokeStyle = style("--soft"); context.beginPath();
      context.moveTo(across(low), upward(low)); context.lineTo(across(high), upward(high)); context.stroke();
      context.fillStyle = style("--accent");
      if (places.length <= 4000) {
        context.globalAlpha = 0.55;
        for (const at of places) { context.beginPath(); context.arc(across(x[at]), upward(y[at]), 2.5, 0, 7); context.fill(); }
      } else {
        const cell = 4, side = Math.ceil(inner / cell), cells = new Uint32Array(side * side);
        for (const at of places) {
          const column = Math.min(side - 1, Math.floor((across(x[at]) - margin) / cell));
          const row = Math.min(side - 1, Math.floor((size - margin - upward(y[at])) / cell));
          cells[row * side + column] += 1;
        }
        const most = Math.log1p(cells.reduce((one, other) => Math.max(one, other), 1));
        cells.forEach((count, at) => {
          if (!count) return;
          context.globalAlpha = 0.12 + 0.88 * (Math.log1p(count) / most);
          context.fillRect(margin + (at % side) * cell, size - margin - (Math.floor(at / side) + 1) * cell, cell, cell);
        });
      }
      context.globalAlpha = 1;
    }

    canvas.addEventListener("click", (event) => {
      const box = canvas.getBoundingClientRect(), ratio = size / box.width;
      const at = [(event.clientX - box.left) * ratio, (event.clientY - box.top) * ratio];
      let best = null, near = 144;
      for (const one of places) {
        const far = (across(x[one]) - at[0]) ** 2 + (upward(y[one]) - at[1]) ** 2;
        if (far < near) { near = far; best = one; }
      }
      if (best !== null) pick(best);
    });
    requestAnimationFrame(draw);
    return {root: canvas, draw};
  }

  return {binned, histogram, scatter};
})();
