// Building blocks of the page: elements, number formats, files, and data packed by the server.
const page = (() => {
  const SVG = "http://www.w3.org/2000/svg";

  function fill(node, attributes, children) {
    for (const [key, value] of Object.entries(attributes ?? {})) {
      if (value === null || value === undefined || value === false) continue;
      if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
      else if (key === "text") node.textContent = text.calm(String(value));
      else if (["value", "checked", "disabled", "open"].includes(key)) node[key] = value;
      else node.setAttribute(key, value === true ? "" : value);
    }
    node.append(...children.flat().filter((one) => one !== null && one !== undefined)
      .map((one) => (one instanceof Node ? one : text.calm(String(one)))));
    return node;
  }

  const el = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
  const svg = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

  const missing = (value) => value === null || value === undefined || Number.isNaN(value);
  const fixed = (value, digits = 3) => (missing(value) ? "–" : (value + 0).toFixed(digits));
  const short = (value) => (missing(value) ? "–" : String(Number((value + 0).toPrecision(4))));
  const whole = (value) => value.toLocaleString("en-US");
  const percent = (value) => (missing(value) ? "–" : `${(100 * value).toFixed(1)}%`);
  const plural = (count, noun) => `${whole(count)} ${noun}${count === 1 ? "" : "s"}`;

  const COLOURS = ["--c1", "--c2", "--c3", "--c4", "--c5", "--c6", "--c7", "--c8"];
  const colour = (at) => `var(${COLOURS[at % COLOURS.length]})`;

  function bytes(text) {
    const binary = atob(text), array = new Uint8Array(binary.length);
    for (let at = 0; at < binary.length; at += 1) array[at] = binary.charCodeAt(at);
    return array;
  }

  async function inflated(text) {
    const stream = new Blob([bytes(text)]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Response(stream).arrayBuffer();
  }

  const TYPES = {
    f4: Float32Array, f8: Float64Array, i1: Int8Array, u1: Uint8Array, u2: Uint16Array,
    i4: Int32Array, u4: Uint32Array,
  };

  // Returns the arrays that `pack` in dataset.py packed, by name.
  async function unpacked({layout, blob}) {
    const buffer = await inflated(blob);
    return Object.fromEntries(layout.map(({name, type, at, count}) => [name, new TYPES[type](buffer, at, count)]));
  }

  // Returns packed bits, one for each pair, as one byte each.
  async function flags(text, count) {
    const bits = new Uint8Array(await inflated(text)), found = new Uint8Array(count);
    for (let at = 0; at < count; at += 1) found[at] = (bits[at >> 3] >> (7 - (at & 7))) & 1;
    return found;
  }

  function base64(buffer) {
    const bytes = new Uint8Array(buffer);
    let binary = "";
    for (let at = 0; at < bytes.length; at += 32768)
      binary += String.fromCharCode(...bytes.subarray(at, at + 32768));
    return btoa(binary);
  }

  function download(name, content) {
    const url = content instanceof Blob ? URL.createObjectURL(content) : content;
    const link = el("a", {href: url, download: name});
    document.body.append(link);
    link.click();
    link.remove();
    if (content instanceof Blob) setTimeout(() => URL.revokeObjectURL(url), 60000);
  }

  // Copies a text to the clipboard, or shows it in a field if the browser forbids that.
  async function copied(text, host, say) {
    try {
      await navigator.clipboard.writeText(text);
      say("copied");
    } catch {
      const field = el("textarea", {class: "copy-from", "aria-label": "to copy from", readonly: true, value: text});
      host.append(field);
      field.select();
      field.addEventListener("blur", () => field.remove());
      say("press Ctrl-C to copy");
    }
  }

  const labelled = (label, control) => el("label", {class: "field"}, el("span", {text: label}), control);

  function select(label, choices, value, change) {
    const node = el("select", {"aria-label": label, onchange: () => change(node.value)},
      choices.map(([key, text]) => el("option", {value: key, text})));
    node.value = value;
    return node;
  }

  function table(label, head, rows, kind = "") {
    return el("div", {class: `scroll ${kind}`, tabindex: "0", role: "region", "aria-label": label},
      el("table", {}, el("caption", {class: "hidden", text: label}),
        el("thead", {}, el("tr", {}, head.map((one) => el("th", {scope: "col"}, one)))),
        el("tbody", {}, rows.map((row) => (row instanceof Node ? row
          : el("tr", {}, row.map((one, at) => el(at ? "td" : "th", at ? {} : {scope: "row"}, one))))))));
  }

  return {el, svg, missing, fixed, short, whole, percent, plural, colour, unpacked, flags, base64,
    download, bytes, copied, labelled, select, table};
})();
