// The query language that selects pairs: query.py in JavaScript, tested with the same cases.
const queryLanguage = (() => {
  const LONGEST = 1000, MAX_TERMS = 50, MAX_VALUES = 100, MAX_SEARCHES = 10, NEAR = 1e-6;
  const NUMBER = "[+-]?(?:\\d+\\.?\\d*|\\.\\d+)(?:e[+-]?\\d+)?";
  const NAME = /[a-z][a-z0-9_]*/y;
  const RANGE = new RegExp(`^(${NUMBER})?\\.\\.(${NUMBER})?$`);
  const BOUND = new RegExp(`^(>=|<=|>|<)(${NUMBER})$`);
  const SINGLE = new RegExp(`^${NUMBER}$`);
  const SPACE = /\s/u;

  class BadQuery extends Error {}

  const range = (word, low, high, openLow = false, openHigh = false) =>
    ({kind: "range", word, low, high, openLow, openHigh});

  function value(word, quoted) {
    if (!quoted) {
      if (word === "missing") return {kind: "missing", word};
      let match = RANGE.exec(word);
      if (match && word !== "..")
        return range(word, match[1] === undefined ? -Infinity : Number(match[1]),
          match[2] === undefined ? Infinity : Number(match[2]));
      match = BOUND.exec(word);
      if (match) {
        const number = Number(match[2]);
        return match[1][0] === ">"
          ? range(word, number, Infinity, match[1] === ">")
          : range(word, -Infinity, number, false, match[1] === "<");
      }
      if (SINGLE.test(word)) return range(word, Number(word), Number(word));
    }
    return {kind: "word", word};
  }

  // Returns [word or quoted text, whether it is quoted, where it ends].
  function word(text, place, stop) {
    if (text[place] === '"') {
      let end = place + 1, characters = "";
      while (end < text.length && text[end] !== '"') {
        if (text[end] === "\\" && end + 1 < text.length) end += 1;
        characters += text[end];
        end += 1;
      }
      if (end >= text.length) throw new BadQuery("a quotation mark is not closed");
      return [characters, true, end + 1];
    }
    let end = place;
    while (end < text.length && !SPACE.test(text[end]) && text[end] !== stop) end += 1;
    return [text.slice(place, end), false, end];
  }

  function values(text, place) {
    const parts = [];
    while (place < text.length && !SPACE.test(text[place])) {
      const [content, quoted, end] = word(text, place, ",");
      if (content || quoted) parts.push([content, quoted]);
      place = text[end] === "," ? end + 1 : end;
    }
    return [parts, place];
  }

  function parse(text) {
    if (text.length > LONGEST) throw new BadQuery(`a query has at most ${LONGEST} characters`);
    const query = {terms: [], sort: null, descending: false};
    let place = 0;
    while (place < text.length) {
      if (SPACE.test(text[place])) { place += 1; continue; }
      const negated = text[place] === "-" && place + 1 < text.length && !SPACE.test(text[place + 1]);
      place += negated ? 1 : 0;
      NAME.lastIndex = place;
      const match = NAME.exec(text);
      if (match && text[NAME.lastIndex] === ":") {
        const name = match[0];
        const [raw, end] = values(text, place + name.length + 1);
        place = end;
        if (!raw.length) throw new BadQuery(`${name}: has no value; write one after the colon`);
        if (name === "sort") {
          if (negated || raw.length !== 1)
            throw new BadQuery("sort: takes one field, such as sort:beta or sort:-beta");
          query.descending = raw[0][0].startsWith("-");
          query.sort = raw[0][0].slice(query.descending ? 1 : 0);
          continue;
        }
        query.terms.push({field: name, values: raw.map((one) => value(...one)), negated});
      } else {
        const [content, , end] = word(text, place, null);
        place = end;
        query.terms.push({field: "text", values: [{kind: "word", word: content}], negated});
      }
      checkSize(query);
    }
    return query;
  }

  function checkSize(query) {
    if (query.terms.length > MAX_TERMS) throw new BadQuery(`a query has at most ${MAX_TERMS} terms`);
    if (query.terms.reduce((sum, term) => sum + term.values.length, 0) > MAX_VALUES)
      throw new BadQuery(`a query has at most ${MAX_VALUES} values`);
    if (serverTerms(query).length > MAX_SEARCHES)
      throw new BadQuery(`a query has at most ${MAX_SEARCHES} texts and beginnings of ids`);
  }

  const plain = /^[^\s",:-][^\s",]*$/u;
  const quoted = (text) => `"${text.replace(/[\\"]/g, "\\$&")}"`;
  const isWord = (text) => plain.test(text) && value(text, false).kind === "word";

  // Returns the text of a query; `parse` reverses it.
  function format(query) {
    const terms = query.terms.map((term) => {
      const texts = term.values.map((one) =>
        one.kind === "word" ? (isWord(one.word) && !(term.field === "text" && one.word.includes(":"))
          ? one.word : quoted(one.word)) : one.word);
      const sign = term.negated ? "-" : "";
      return term.field === "text" && texts.length === 1 ? sign + texts[0] : `${sign}${term.field}:${texts.join(",")}`;
    });
    if (query.sort) terms.push(`sort:${query.descending ? "-" : ""}${query.sort}`);
    return terms.join(" ");
  }

  function getField(name, fields) {
    const field = Object.hasOwn(fields, name) ? fields[name] : null;
    if (!field)
      throw new BadQuery(`there is no field ${name} (fields: ${Object.keys(fields).join(", ")})`);
    return field;
  }

  // Returns a function that returns whether the pair at a place has a value.
  function test(name, field, one) {
    const column = field.values;
    if (field.kind === "number") {
      if (one.kind === "missing") return (at) => Number.isNaN(column[at]);
      if (one.kind !== "range")
        throw new BadQuery(`${name}: takes numbers, such as 0.3, 0.1..0.2, >=0.1 or missing`);
      const low = one.openLow ? one.low + NEAR : one.low - NEAR;
      const high = one.openHigh ? one.high - NEAR : one.high + NEAR;
      return (at) => column[at] >= low && column[at] <= high;
    }
    if (one.kind === "missing")
      return field.kind === "set" ? (at) => column[at] === 0 : (at) => column[at] < 0;
    if (field.kind === "flag") {
      const words = {yes: 1, true: 1, no: 0, false: 0};
      if (!Object.hasOwn(words, one.word)) throw new BadQuery(`${name}: takes yes, no or missing`);
      return (at) => column[at] === words[one.word];
    }
    const level = field.levels.indexOf(one.word);
    if (level < 0)
      throw new BadQuery(`${name}: has no ${one.word} (it has ${field.levels.join(", ")})`);
    if (field.kind === "set") return (at) => ((column[at] >>> level) & 1) === 1;
    return (at) => column[at] === level;
  }

  // The terms that need the server: texts, and the beginnings of ids.
  const serverTerms = (query) => query.terms.filter((term) => term.field === "text" || term.field === "id")
    .flatMap((term) => term.values.map((one) => [term.field, one.word]));

  // Returns for which pairs a term holds, one byte each. `found` has the results of the server, by term.
  function mask(term, fields, count, found) {
    const holds = new Uint8Array(count);
    for (const one of term.values) {
      if (term.field === "text" || term.field === "id") {
        const flags = found.get(`${term.field} ${one.word}`);
        if (flags) for (let at = 0; at < count; at += 1) holds[at] |= flags[at];
        continue;
      }
      const isMatch = test(term.field, getField(term.field, fields), one);
      for (let at = 0; at < count; at += 1) if (!holds[at] && isMatch(at)) holds[at] = 1;
    }
    if (term.negated) for (let at = 0; at < count; at += 1) holds[at] ^= 1;
    return holds;
  }

  function sort(places, query, fields) {
    if (query.sort === null) return places;
    const field = getField(query.sort, fields);
    if (field.kind === "set" || field.kind === "id")
      throw new BadQuery(`sort: cannot sort by ${query.sort}`);
    const sign = query.descending ? -1 : 1;
    const key = new Float64Array(field.values.length);
    for (const at of places) {
      const value = field.values[at];
      key[at] = (field.kind === "number" ? Number.isNaN(value) : value < 0) ? Infinity : sign * value;
    }
    return places.sort((one, other) => key[one] - key[other] || one - other);
  }

  // Returns the places of the pairs that a query selects, sorted as it asks.
  function select(query, fields, count, found = new Map()) {
    const masks = query.terms.map((term) => mask(term, fields, count, found));
    const places = [];
    for (let at = 0; at < count; at += 1) if (masks.every((one) => one[at])) places.push(at);
    return sort(Uint32Array.from(places), query, fields);
  }

  return {BadQuery, parse, format, serverTerms, mask, select, sort, value};
})();
