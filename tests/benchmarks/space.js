// Clocks for the inspector's page: milliseconds from an action until what it changes is painted.
window.clocks = (() => {
  const soon = () => new Promise((done) => setTimeout(done, 0));
  const painted = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done, 0)));
  const find = (selector) => document.querySelector(selector);

  async function until(act, changed) {
    const began = performance.now();
    act();
    while (!changed()) await soon();
    await painted();
    return performance.now() - began;
  }

  const textChanged = (selector) => {
    const before = find(selector).textContent;
    return () => find(selector).textContent !== before;
  };

  const facet = (word) => until(
    () => find(`[data-field="category"][data-word="${word}"]`).click(), textChanged(".shown"));

  const query = (text) => until(() => {
    const box = find(".query");
    box.value = text;
    box.dispatchEvent(new KeyboardEvent("keydown", {key: "Enter"}));
  }, textChanged(".shown"));

  async function pair(place) {
    find("dialog .pair-body").replaceChildren();
    const took = await until(() => document.querySelectorAll(".listing .open")[place].click(),
      () => find("dialog .steps"));
    find("dialog .close").click();
    return took;
  }

  const edit = (value) => until(() => {
    const field = find('[aria-label="beta_max"]');
    field.value = value;
    field.dispatchEvent(new Event("input", {bubbles: true}));
  }, textChanged('[data-fact="mean"]'));

  // Every move of the pointer over a histogram, from now on.
  function moves() {
    const took = [];
    find('svg.histogram[data-name="beta"]').addEventListener("pointermove", async () => {
      const began = performance.now();
      await painted();
      took.push(performance.now() - began);
    }, true);
    return took;
  }

  return {painted, facet, query, pair, edit, moves};
})();
