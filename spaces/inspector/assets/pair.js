// The dialog of one pair: its texts, all replies, and the computation of its beta.
const pair = (() => {
  const {el, fixed, short, colour, table, missing} = page;

  const MAX_REPLIES = 500, MAX_MESSAGES = 100, MAX_SUMMARY = 1000, MAX_VALUE = 5000;  // of what is shown at once

  const contents = (messages) => (messages ?? []).map((one) => one.content ?? "").join("\n\n");

  function turn(message, raw) {
    const content = message.content ?? "";
    return el("div", {class: `turn ${message.role === "user" ? "user" : ""}`}, el("span", {class: "role", text: (message.role ?? "").slice(0, MAX_SUMMARY)}),
      el("div", {class: "content"}, raw ? text.plain(content) : text.readable(content)));
  }

  function conversation(messages, raw) {
    const into = document.createDocumentFragment(), all = messages ?? [];
    let at = 0;
    text.inParts(into, () => {
      const part = document.createDocumentFragment();
      // Each message appears in parts itself, the first of which is at most this long.
      for (let room = text.PART, count = 0; at < all.length && room > 0 && count < MAX_MESSAGES; at += 1, count += 1) {
        room -= (all[at].content ?? "").length;
        part.append(turn(all[at], raw));
      }
      return [part, all.slice(at).reduce((sum, one) => sum + (one.content ?? "").length + 1, 0)];
    });
    return into;
  }

  function differing(row) {
    const runs = diff.compared(contents(row.rejected), contents(row.chosen));
    const tags = {both: "span", first: "del", second: "ins"}, into = document.createDocumentFragment();
    let run = 0, from = 0, left = runs.reduce((sum, [, words]) => sum + words.length, 0);
    text.inParts(into, () => {
      const block = el("pre", {class: "raw"});
      for (let room = text.PART, count = 0; run < runs.length && room > 0 && count < 3000; count += 1) {
        const [which, words] = runs[run], end = text.cut(words, from, room);
        block.append(el(tags[which], {text: words.slice(from, end)}));
        room -= end - from;
        left -= Math.min(end, words.length) - from;
        if (end >= words.length) { run += 1; from = 0; } else from = end;
      }
      return [block, left];
    });
    return el("div", {class: "diff"}, el("p", {class: "soft"}, el("del", {text: "only in rejected"}), " ", el("ins", {text: "only in chosen"})), into);
  }

  function responses(app, row) {
    const look = app.state.look, set = (value) => el("button", {type: "button", "aria-pressed": String(look === value[0]), text: value[1],
      onclick: () => app.set({look: value[0]})});
    const choices = el("div", {class: "buttons", role: "group", "aria-label": "how to show the responses"},
      [["side", "side by side"], ["diff", "word diff"], ["raw", "plain text"]].map(set));
    const raw = look === "raw";
    const both = look === "diff" ? differing(row) : el("div", {class: "sides"},
      ["chosen", "rejected"].map((name) => el("section", {class: name, "aria-label": name}, el("h4", {text: name}), conversation(row[name], raw))));
    return [el("section", {class: "asked", "aria-label": "prompt"}, el("h3", {text: "prompt"}), conversation(row.prompt, raw)),
      el("div", {class: "bar-line"}, el("h3", {text: "responses"}), choices), both];
  }

  // Returns the scores of the kept replies about a pair, in the form that `schedule` takes.
  function scoresOf(app, replies) {
    const {rubric} = app.D, kept = replies.filter((one) => one.status === "kept");
    const categories = Object.keys(rubric.categories), hasScore = (name) => kept.some((one) => !missing(one[name]));
    const packed = {
      slots: kept.map((one) => [one.teacher, one.variant, one.order]), slot: kept.map((_, at) => at), counts: [kept.length],
      category: kept.map((one) => categories.indexOf(one.category)),
      better: kept.map((one) => ["tie", "A", "B"].indexOf(one.better ?? "")),
      magnitude: kept.map((one) => one.magnitude - rubric.magnitude.min), confidence: kept.map((one) => one.confidence - rubric.confidence.min),
    };
    for (const name of ["expected_magnitude", "expected_confidence"])
      if (hasScore(name)) packed[name] = kept.map((one) => (missing(one[name]) ? NaN : one[name]));
    return {kept, scores: schedule.prepared(packed)};
  }

  const FORMS = {
    product: "magnitude × confidence", magnitude: "magnitude",
    shrink: "confidence × magnitude + (1 − confidence) × m0", signed: "magnitude × (2 × confidence − 1)",
  };

  function formula(spec, rubric) {
    if (!rubric.blind) return FORMS[spec.gap];
    return spec.gap === "shrink" ? "confidence × (sign × magnitude) + (1 − confidence) × m0"
      : `sign × ${spec.gap === "magnitude" ? "magnitude" : FORMS.product}`;
  }

  const listed = (values) => values.map(short).join(", ");
  const named = (way) => (schedule.WAYS.includes(way) ? (way === "trimmed" ? "trimmed mean" : way) : "only");

  // Returns the steps from the replies to the beta, each as [quantity, formula, result].
  function arithmetic(app, spec, replies, place) {
    const {rubric} = app.D, {kept, scores} = scoresOf(app, replies);
    const counts = schedule.counted(spec, scores), gapOf = schedule.reader(spec, rubric, scores);
    const votes = kept.map((_, at) => at).filter((at) => counts(at));
    const lines = [["gap of a reply", `${formula(spec, rubric)}, the ${spec.estimate === "expected" ? "expected " : ""}scores as shares of their scales`, ""]];
    const gaps = kept.map((_, at) => (counts(at) ? gapOf(at) : null));
    if (votes.length < spec.quorum) return {lines: [...lines, ["beta", `${votes.length} votes, below the quorum of ${spec.quorum}`, "none"]], beta: NaN, gaps};
    const means = new Map();
    for (const at of votes) {
      const {teacher, variant} = kept[at], key = JSON.stringify([teacher, variant]);
      means.set(key, [...(means.get(key) ?? []), gaps[at]]);
    }
    const byTeacher = new Map();
    for (const [key, values] of means) {
      const [teacher, variant] = JSON.parse(key), mean = values.reduce((sum, one) => sum + one, 0) / values.length;
      if (values.length > 1) lines.push([`${teacher}, ${variant}`, `mean over the orders (${listed(values)})`, short(mean)]);
      byTeacher.set(teacher, [...(byTeacher.get(teacher) ?? []), mean]);
    }
    const combined = [];
    for (const [teacher, values] of byTeacher) {
      const one = schedule.combine([...values], values.length, spec.overVariants);
      lines.push([teacher, `${named(spec.overVariants)}(${listed(values)})`, short(one)]);
      combined.push(one);
    }
    let signed = schedule.combine([...combined], combined.length, spec.overTeachers);
    if (Math.abs(signed) <= 1e-9) signed = 0;
    lines.push([signed < 0 ? "signed gap" : "gap", `${named(spec.overTeachers)}(${listed(combined)})`, short(signed)]);
    if (signed < 0) lines.push(["gap", `max(0, ${short(signed)}): the label is disputed`, "0"]);
    const gap = Math.max(0, signed), where = spec.map === "quantile" ? place : gap;
    const {category} = schedule.gaps(spec, rubric, scores);
    const name = Object.keys(rubric.categories)[category[0]], own = spec.envelopes[name], ends = own ?? spec;
    const beta = Math.min(ends.betaMax, Math.max(ends.betaMin, schedule.mapped(spec, where, ends.betaMin, ends.betaMax)));
    const share = spec.map === "power" ? `${short(where)}^${short(spec.exponent)}` : short(where);
    const how = spec.map === "log-linear" ? `${ends.betaMin}^(1 − ${share}) × ${ends.betaMax}^${share}` : `${ends.betaMin} + (${ends.betaMax} − ${ends.betaMin}) × ${share}`;
    lines.push(["beta", `${how}${spec.map === "quantile" ? ", with the rank of the gap among all pairs" : ""}${own ? `, the envelope of ${name}` : ""}`, fixed(beta, 6)]);
    return {lines, beta, gaps};
  }

  function steps(label, lines) {
    return table(label, ["", "how", ""], lines.map((line) => line.map((one) => String(one))), "steps");
  }

  function replyTable(app, replies, gaps) {
    const {rubric} = app.D, categories = Object.keys(rubric.categories);
    const head = ["teacher", "variant", ...(rubric.blind ? ["order", "better"] : []), "category", "magnitude", "confidence", "gap", "rationale"];
    let at = 0;
    const rows = replies.slice(0, MAX_REPLIES).map((one) => {
      const kept = one.status === "kept", gap = kept ? gaps[at++] : null;
      const shown = one.order === "chosen-first" ? ["chosen", "rejected"] : ["rejected", "chosen"];
      const better = {A: `A, ${shown[0]}`, B: `B, ${shown[1]}`}[one.better] ?? one.better ?? "";
      const details = el("details", {class: "reply"}, el("summary", {text: (kept ? one.rationale ?? "" : `refused: ${one.reason ?? ""}`).slice(0, MAX_SUMMARY)}),
        el("dl", {}, [["model", one.model], ["revision", one.revision], ["attempt", one.attempt], ["finish", one.finish_reason],
          ["tokens", missing(one.prompt_tokens) ? null : `${one.prompt_tokens} prompt, ${one.completion_tokens} completion`],
          ["expected", missing(one.expected_magnitude) ? null : `magnitude ${short(one.expected_magnitude)}, confidence ${short(one.expected_confidence)}`]]
          .filter(([, value]) => !missing(value)).flatMap(([key, value]) => [el("dt", {text: key}), el("dd", {text: String(value).slice(0, MAX_SUMMARY)})])),
        text.plain(one.raw ?? "", MAX_VALUE));
      const category = kept ? el("span", {class: "tag"}, el("span", {class: "key", style: `background: ${colour(categories.indexOf(one.category))}`}), one.category) : "–";
      return [one.teacher, one.variant, ...(rubric.blind ? [one.order, better] : []), category, missing(one.magnitude) ? "–" : String(one.magnitude),
        missing(one.confidence) ? "–" : String(one.confidence), kept ? (gap === null ? "no vote" : short(gap)) : "–", details];
    });
    const more = replies.length - rows.length;
    return [table("replies", head, rows, "replies"), more > 0 ? el("p", {class: "note", text: `${more} more replies are not shown`}) : null];
  }

  function evidence(app, place, replies, everywhere) {
    const {D} = app, published = schedule.read(D.facts.schedule), beta = D.fields.beta.values[place];
    const computed = arithmetic(app, published, replies, everywhere.published?.places?.[place]);
    const arm = D.facts.arm ?? {}, parts = [el("h3", {text: "replies"}), ...replyTable(app, replies, computed.gaps), el("h3", {text: "from the replies to beta"}), steps("from the replies to beta", computed.lines)];
    if (Object.keys(arm).length)
      parts.push(el("p", {class: "note", text: `The published betas come from an arm: ${Object.entries(arm).map(([key, one]) => `${key} ${one}`).join("; ")}. Published: ${fixed(beta, 6)}.`}));
    else if (!missing(computed.beta) !== !missing(beta) || Math.abs(computed.beta - beta) > 1e-5)
      parts.push(el("p", {class: "problem", role: "alert", text: `the published beta is ${fixed(beta, 6)}, but the replies give ${fixed(computed.beta, 6)}`}));
    if (app.state.s) {
      const edited = arithmetic(app, app.spec(), replies, everywhere.edited?.places?.[place]);
      parts.push(el("h3", {text: "with the edited schedule"}), steps("with the edited schedule", edited.lines));
    }
    return parts;
  }

  const HIDDEN = new Set(["pair_id", "prompt", "chosen", "rejected", "has_beta", "keep", "label_disputed"]);

  function written(value) {
    const content = typeof value === "string" ? value : JSON.stringify(value);
    return content.length > MAX_VALUE ? text.plain(content, MAX_VALUE) : content;
  }

  function facts(row) {
    const columns = Object.entries(row).filter(([key, value]) => !HIDDEN.has(key) && !missing(value));
    return el("dl", {class: "facts"}, columns.flatMap(([key, value]) => [el("dt", {text: key}),
      el("dd", {}, typeof value === "number" ? short(value) : written(value))]));
  }

  function view(app) {
    const body = el("div", {class: "pair-body"}), title = el("h2", {id: "pair-title", tabindex: "-1"});
    const move = (step) => {
      const {places} = app.selection, at = places.indexOf(app.place);
      if (at >= 0 && places[at + step] !== undefined) app.open(places[at + step]);
    };
    const back = el("button", {type: "button", text: "previous", onclick: () => move(-1)});
    const on = el("button", {type: "button", text: "next", onclick: () => move(1)});
    const link = el("button", {type: "button", text: "copy link", onclick: () => app.copyLink(root)});
    const close = el("button", {type: "button", class: "close", "aria-label": "close", text: "×", onclick: () => app.close()});
    const root = el("dialog", {class: "pair", "aria-labelledby": "pair-title"}, el("header", {}, title, el("div", {class: "buttons"}, back, on, link, close)), body);
    root.addEventListener("cancel", (event) => { event.preventDefault(); app.close(); });
    root.addEventListener("click", (event) => { if (event.target === root) app.close(); });
    root.addEventListener("keydown", (event) => {
      if (["INPUT", "TEXTAREA", "SELECT"].includes(event.target.tagName)) return;
      if (event.key === "ArrowRight" || event.key === "j") move(1);
      if (event.key === "ArrowLeft" || event.key === "k") move(-1);
    });
    let shown = null, drawn = "", turn = 0;

    async function update() {
      const place = app.place;
      if (place === null) { if (root.open) root.close(); shown = null; drawn = ""; return; }
      if (!root.open) root.showModal();
      const key = JSON.stringify([place, app.state.look, app.state.s]);
      if (key === drawn) return;
      const mine = turn += 1;
      drawn = key;
      const {places} = app.selection, at = places.indexOf(place);
      back.disabled = at <= 0;
      on.disabled = at < 0 || at >= places.length - 1;
      try {
        if (shown?.place !== place) {
          root.setAttribute("aria-busy", "true");
          const response = await app.ask("pair", {place});
          if (mine !== turn) return;
          shown = {place, ...response};
          body.scrollTop = 0;
        }
        const everywhere = await app.everywhere();
        if (mine !== turn) return;
        const {row, replies} = shown;
        title.textContent = `${text.calm((row.source_id ?? "pair").slice(0, 200))} · beta ${fixed(row.beta, 4)}${row.category ? ` · ${row.category}` : ""}`;
        body.replaceChildren(el("p", {class: "soft id", text: row.pair_id}), ...responses(app, row), ...evidence(app, place, replies, everywhere).filter(Boolean), el("h3", {text: "all columns"}), facts(row));
      } catch (error) {
        if (mine === turn) { title.textContent = "pair"; body.replaceChildren(el("p", {class: "problem", role: "alert", text: error.message})); }
      } finally {
        if (mine === turn) root.removeAttribute("aria-busy");
      }
    }
    return {root, update};
  }

  return {view};
})();
