// What query.js makes of some queries over the table: places, or an error; and once more after
// the query was written and read again.
([table, queries]) => {
  const arrays = {
    number: Float32Array, level: Int8Array, flag: Int8Array, set: Uint32Array, id: Array,
  };
  const fields = Object.fromEntries(Object.entries(table.fields).map(([name, one]) => [name, {
    ...one, values: arrays[one.kind].from(one.values.map((value) => value === null ? NaN : value)),
  }]));
  const {texts} = table, ids = table.fields.id.values;
  const tell = (query) => {
    try {
      const read = queryLanguage.parse(query), found = new Map();
      for (const [kind, said] of queryLanguage.serverTerms(read)) {
        const word = said.toLowerCase();
        const held = kind === "text" ? texts.map((one) => one.toLowerCase().includes(word))
          : ids.map((one) => one.startsWith(word));
        found.set(`${kind} ${said}`, Uint8Array.from(held));
      }
      const chosen = (one) => Array.from(queryLanguage.select(one, fields, texts.length, found));
      return {places: chosen(read), again: chosen(queryLanguage.parse(queryLanguage.format(read)))};
    } catch (error) {
      if (!(error instanceof queryLanguage.BadQuery)) throw error;
      return {error: error.message};
    }
  };
  return queries.map(tell);
}
