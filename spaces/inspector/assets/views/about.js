// View: facts about the data set, and help.
const about = (() => {
  const {el, plural, table} = page;

  function view(app) {
    const {facts, rubric, count} = app.D, source = facts.source ?? {};
    const summary = [["source", `${source.name ?? "–"}${source.revision ? ` at ${source.revision}` : ""}`], ["licence", facts.license ?? "not stated"], ["pairs", plural(count, "pair")],
      ["rubric", `${rubric.name}, ${facts.rubric.sha256.slice(0, 12)}`], ["protocol", rubric.blind ? "blind" : "labelled"], ["made with", `sp2dpo ${facts.toolkit?.version ?? ""}`]];
    const checks = facts.audit?.checks ?? [];
    const rows = (all) => el("dl", {class: "facts"}, all.flatMap(([key, value]) => [el("dt", {text: key}), el("dd", {text: String(value)})]));
    const root = el("section", {class: "about", "aria-label": "about"}, el("h2", {text: "this data set"}), rows(summary),
      el("h3", {text: "schedule"}), el("pre", {class: "yaml", text: schedule.written(schedule.read(facts.schedule))}),
      el("h3", {text: "categories"}), rows(Object.entries(rubric.categories)),
      checks.length ? el("h3", {text: "audit"}) : null, checks.length ? table("audit", ["verdict", "check"], checks.map((check) => [check.verdict, check.title])) : null,
      el("h2", {text: "filters"}), el("p", {text: "All terms must hold. Of values separated by commas, one must hold. A - in front negates a term."}),
      rows([["beta:0.1..0.2", "a range; also >=0.1, <0.1, 0.3, missing"], ["category:safety,factuality", "any of these words"], ["-disputed:yes", "not these"], ['"word for word"', "in the prompt or in a response"],
        ["sort:-gap", "sort, highest first"], ["fields", Object.keys(app.D.fields).join(", ")]]),
      el("h2", {text: "keys"}), rows([["/", "go to the filters"], ["← →", "in an open pair: previous pair, next pair"], ["Escape", "close a pair, or clear a selected range"], [`1 to ${views.length}`, "switch views"]]),
      el("h2", {text: "API"}), el("p", {text: "The same filters are available over HTTP and MCP: the API function find_pairs, and the MCP tool of that name at gradio_api/mcp/. See “Use via API” at the bottom of the page."}));
    return {root, update() {}};
  }

  return {view};
})();
views.push({key: "about", label: "about", order: 5, build: about.view});
