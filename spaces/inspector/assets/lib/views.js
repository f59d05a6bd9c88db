// The views, which are the tabs of the page. Each file of assets/views/ adds one:
//   {key, label, order, build}
// `key` is its name in the address, `label` the text of its tab, and `order` its position.
// `build(app)` returns {root, update(selection)}: its element, and a function that redraws it for the
// pairs that the query selects.
const views = [];
