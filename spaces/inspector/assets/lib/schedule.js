// Computes betas from replies for all pairs, as `sp2dpo schedule` does.
const schedule = (() => {
  const NOISE = 1e-9, PLACES = 1e9, FEWEST_TO_TRIM = 5, LARGEST = 1e6, LONGEST_CHANGES = 20000;
  const GAPS = ["product", "magnitude", "shrink", "signed"];
  const MAPS = ["linear", "log-linear", "power", "quantile"];
  const WAYS = ["median", "mean", "trimmed"];

  class Refused extends Error {}

  const choice = /^([a-z-]+)(?:\(\s*(?:[a-z0-9_]+\s*=\s*)?([^)]+)\))?$/;

  // Returns the schedule of a YAML file or a manifest.
  function read(config) {
    const [, gap, m0] = choice.exec(config.gap) ?? [];
    const [, map, exponent] = choice.exec(config.map) ?? [];
    return {
      betaMin: Number(config.beta_min), betaMax: Number(config.beta_max), quorum: Number(config.quorum),
      estimate: config.estimate, gap, m0: m0 === undefined ? 0.5 : Number(m0),
      overVariants: config.over_variants, overTeachers: config.over_teachers,
      map, exponent: exponent === undefined ? 1 : Number(exponent),
      envelopes: Object.fromEntries(Object.entries(config.envelopes ?? {}).map(
        ([name, one]) => [name, {betaMin: Number(one.beta_min), betaMax: Number(one.beta_max)}])),
    };
  }

  const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
  const isText = (value) => typeof value === "string" && value.length <= 300;
  const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);
  const isEnvelope = (value) => isObject(value) && isNumber(value.betaMin) && isNumber(value.betaMax);
  const KEYS = {
    betaMin: isNumber, betaMax: isNumber, quorum: isNumber, m0: isNumber, exponent: isNumber,
    estimate: (value) => ["sampled", "expected"].includes(value), gap: (value) => GAPS.includes(value),
    map: (value) => MAPS.includes(value), overVariants: isText, overTeachers: isText,
    envelopes: (value) => isObject(value) && Object.values(value).every(isEnvelope),
  };

  // Returns the changes of a schedule that a text of the address describes, or null if it is not valid.
  function parseChanges(text) {
    if (text.length > LONGEST_CHANGES) return null;
    let changes = null;
    try { changes = JSON.parse(text); } catch { return null; }
    if (!isObject(changes)) return null;
    const isValid = Object.entries(changes).every(([key, value]) => Object.hasOwn(KEYS, key) && KEYS[key](value));
    return isValid ? changes : null;
  }

  const bare = (text) => (/^[A-Za-z][\w-]*$/.test(text) &&
    !/^(y|n|yes|no|true|false|on|off|null|none|nan|inf)$/i.test(text) ? text : JSON.stringify(text));
  // YAML 1.1 reads 1e-7 as text.
  const number = (value) => {
    const text = String(value);
    return text.includes("e") && !text.includes(".") ? text.replace("e", ".0e") : text;
  };

  function written(spec) {
    const lines = [
      `beta_min: ${number(spec.betaMin)}`, `beta_max: ${number(spec.betaMax)}`,
      `quorum: ${spec.quorum}`, `estimate: ${spec.estimate}`,
      `gap: ${spec.gap === "shrink" ? `shrink(m0=${number(spec.m0)})` : spec.gap}`,
      `over_variants: ${bare(spec.overVariants)}`, `over_teachers: ${bare(spec.overTeachers)}`,
      `map: ${spec.map === "power" ? `power(exponent=${number(spec.exponent)})` : spec.map}`,
    ];
    const own = Object.entries(spec.envelopes);
    if (own.length) lines.push("envelopes:");
    for (const [name, one] of own)
      lines.push(`  ${bare(name)}: {beta_min: ${number(one.betaMin)}, beta_max: ${number(one.betaMax)}}`);
    return `${lines.join("\n")}\n`;
  }

  function checkEnvelope({betaMin, betaMax}, whose) {
    for (const [what, value] of [["beta_min", betaMin], ["beta_max", betaMax]])
      if (!(value > 0 && value <= LARGEST)) throw new Refused(`${whose}${what} must be above 0`);
    if (!(betaMin < betaMax)) throw new Refused(`${whose}beta_min must be below beta_max`);
  }

  function check(spec, rubric, scores) {
    checkEnvelope(spec, "");
    for (const [name, one] of Object.entries(spec.envelopes)) checkEnvelope(one, `${name}: `);
    if (!(Number.isInteger(spec.quorum) && spec.quorum >= 1))
      throw new Refused("quorum must be a whole number, at least 1");
    if (spec.gap === "shrink" && !(spec.m0 >= 0 && spec.m0 <= 1))
      throw new Refused("m0 must be from 0 to 1");
    if (spec.map === "power" && !(spec.exponent > 0 && spec.exponent <= 100))
      throw new Refused("exponent must be above 0, at most 100");
    if (spec.estimate === "expected" && !scores.expected_magnitude)
      throw new Refused("no reply has expected scores");
    for (const [axis, way, names] of [["variants", spec.overVariants, scores.variants],
      ["teachers", spec.overTeachers, scores.teachers]]) {
      if (way === "trimmed" && names.length < FEWEST_TO_TRIM)
        throw new Refused(`trimmed needs at least ${FEWEST_TO_TRIM} ${axis}, and there are ${names.length}`);
      if (!WAYS.includes(way) && !names.includes(way))
        throw new Refused(`no kept reply has the ${axis.slice(0, -1)} ${way}`);
    }
  }

  // Combines the first `count` of `values`, which it sorts in place.
  function combine(values, count, way) {
    if (count === 1) return values[0];
    if (way === "mean" || !WAYS.includes(way)) {
      let sum = 0;
      for (let at = 0; at < count; at += 1) sum += values[at];
      return sum / count;
    }
    for (let at = 1; at < count; at += 1) {
      const one = values[at];
      let to = at - 1;
      for (; to >= 0 && values[to] > one; to -= 1) values[to + 1] = values[to];
      values[to + 1] = one;
    }
    if (way === "median") return (values[(count - 1) >> 1] + values[count >> 1]) / 2;
    const cut = Math.floor(count / FEWEST_TO_TRIM);
    let sum = 0;
    for (let at = cut; at < count - cut; at += 1) sum += values[at];
    return sum / (count - 2 * cut);
  }

  // Adds the fields that are derived from the slots to the scores.
  function prepared(packed) {
    const slots = packed.slots;
    const teachers = [...new Set(slots.map((one) => one[0]))].sort();
    const variants = [...new Set(slots.map((one) => one[1]))].sort();
    const starts = new Uint32Array(packed.counts.length + 1);
    for (let at = 0; at < packed.counts.length; at += 1) starts[at + 1] = starts[at] + packed.counts[at];
    return {
      ...packed, teachers, variants, starts,
      teacherOf: slots.map((one) => teachers.indexOf(one[0])),
      variantOf: slots.map((one) => variants.indexOf(one[1])),
      turnOf: slots.map((one) => (one[2] === "chosen-first" ? 1 : -1)),
    };
  }

  // Returns a function that gives the signed gap of a reply, in [-1, 1].
  function reader(spec, rubric, scores) {
    const {gap, m0} = spec, expected = spec.estimate === "expected";
    const span = (name) => rubric[name].max - rubric[name].min;
    const spans = [span("magnitude"), span("confidence")];
    const lows = [rubric.magnitude.min, rubric.confidence.min];
    return (at) => {
      const m = expected ? (scores.expected_magnitude[at] - lows[0]) / spans[0] : scores.magnitude[at] / spans[0];
      const c = expected ? (scores.expected_confidence[at] - lows[1]) / spans[1] : scores.confidence[at] / spans[1];
      let sign = 1;
      if (rubric.blind)
        sign = (scores.better[at] === 1 ? 1 : scores.better[at] === 2 ? -1 : 0) * scores.turnOf[scores.slot[at]];
      if (gap === "product") return sign * m * c;
      if (gap === "magnitude") return sign * m;
      if (gap === "shrink") return c * sign * m + (1 - c) * m0;
      return rubric.blind ? sign * m * c : m * (2 * c - 1);
    };
  }

  const counted = (spec, scores) => {
    const only = (way, names) => (WAYS.includes(way) ? null : names.indexOf(way));
    const teacher = only(spec.overTeachers, scores.teachers), variant = only(spec.overVariants, scores.variants);
    const expected = spec.estimate === "expected";
    return (at) => {
      const slot = scores.slot[at];
      if (teacher !== null && scores.teacherOf[slot] !== teacher) return false;
      if (variant !== null && scores.variantOf[slot] !== variant) return false;
      return !expected || !(Number.isNaN(scores.expected_magnitude[at]) || Number.isNaN(scores.expected_confidence[at]));
    };
  };

  function gaps(spec, rubric, scores) {
    const count = scores.counts.length, categories = Object.keys(rubric.categories).length;
    const teachers = scores.teachers.length, variants = scores.variants.length;
    const signed = new Float64Array(count).fill(NaN), category = new Int8Array(count).fill(-1);
    const votes = new Uint16Array(count);
    const sums = new Float64Array(teachers * variants), many = new Uint16Array(teachers * variants);
    const inner = new Float64Array(variants), outer = new Float64Array(teachers);
    const named = new Uint16Array(categories);
    const gapOf = reader(spec, rubric, scores), counts = counted(spec, scores);
    for (let pair = 0; pair < count; pair += 1) {
      sums.fill(0); many.fill(0); named.fill(0);
      let voteCount = 0;
      for (let at = scores.starts[pair]; at < scores.starts[pair + 1]; at += 1) {
        if (!counts(at)) continue;
        const slot = scores.slot[at];
        const cell = scores.teacherOf[slot] * variants + scores.variantOf[slot];
        sums[cell] += gapOf(at); many[cell] += 1; voteCount += 1;
        named[scores.category[at]] += 1;
      }
      votes[pair] = voteCount;
      if (!voteCount) continue;
      let best = 0;
      for (let one = 1; one < categories; one += 1) if (named[one] > named[best]) best = one;
      category[pair] = best;
      if (voteCount < spec.quorum) continue;
      let teacherCount = 0;
      for (let teacher = 0; teacher < teachers; teacher += 1) {
        let read = 0;
        for (let variant = 0; variant < variants; variant += 1) {
          const cell = teacher * variants + variant;
          if (many[cell]) { inner[read] = sums[cell] / many[cell]; read += 1; }
        }
        if (read) { outer[teacherCount] = combine(inner, read, spec.overVariants); teacherCount += 1; }
      }
      const gap = combine(outer, teacherCount, spec.overTeachers);
      signed[pair] = Math.abs(gap) <= NOISE ? 0 : gap;
    }
    return {signed, category, votes};
  }

  // Returns the rank of each gap among all, scaled to (0, 1); equal gaps share their mean rank.
  function ranked(gap) {
    const known = [];
    gap.forEach((one, at) => { if (!Number.isNaN(one)) known.push(at); });
    const rounded = gap.map((one) => Math.round(one * PLACES) / PLACES);
    known.sort((one, other) => rounded[one] - rounded[other]);
    const found = new Float64Array(gap.length).fill(NaN);
    for (let from = 0; from < known.length;) {
      let to = from;
      while (to < known.length && rounded[known[to]] === rounded[known[from]]) to += 1;
      for (let at = from; at < to; at += 1) found[known[at]] = ((from + 1 + to) / 2 - 0.5) / known.length;
      from = to;
    }
    return found;
  }

  function mapped(spec, gap, low, high) {
    if (spec.map === "log-linear") return low ** (1 - gap) * high ** gap;
    const share = spec.map === "power" ? gap ** spec.exponent : gap;
    return low * (1 - share) + high * share;
  }

  // Returns all betas; NaN for a pair without one.
  function compute(spec, rubric, scores) {
    check(spec, rubric, scores);
    const {signed, category, votes} = gaps(spec, rubric, scores);
    const gap = signed.map((one) => (one < 0 ? 0 : one));
    const where = spec.map === "quantile" ? ranked(gap) : gap;
    const ends = Object.keys(rubric.categories).map((name) => spec.envelopes[name] ?? spec);
    const beta = new Float64Array(gap.length).fill(NaN);
    for (let pair = 0; pair < gap.length; pair += 1) {
      if (Number.isNaN(gap[pair])) continue;
      const {betaMin, betaMax} = ends[category[pair]];
      beta[pair] = Math.min(betaMax, Math.max(betaMin, mapped(spec, where[pair], betaMin, betaMax)));
    }
    return {beta, gap, signed, category, votes, places: spec.map === "quantile" ? where : null};
  }

  return {GAPS, MAPS, WAYS, Refused, read, parseChanges, written, check, prepared, combine, reader, counted, gaps, compute, mapped};
})();
