// Renders texts of data sets and models as text nodes and plain tags. Nothing in them is executed,
// loaded or turned into a link.
const text = (() => {
  const FENCE = /^\s*(`{3,}|~{3,})\s*([\w+-]*)/;
  const ITEM = /^(\s*)(?:[-*+]|\d{1,3}[.)])\s+(.*)$/;
  const INLINE = /(`+)(.+?)\1|(\*\*|__)(?=\S)(.+?\S?)\3|(?<![\w*])\*(?=[^\s*])([^*\n]+?)\*(?![\w*])/g;

  const made = (tag, content) => {
    const node = document.createElement(tag);
    if (content !== undefined) node.textContent = content;
    return node;
  };

  function inline(into, source) {
    let from = 0;
    for (const match of source.matchAll(INLINE)) {
      into.append(source.slice(from, match.index));
      if (match[2] !== undefined) into.append(made("code", match[2]));
      else if (match[4] !== undefined) into.append(made("strong", match[4]));
      else into.append(made("em", match[5]));
      from = match.index + match[0].length;
    }
    into.append(source.slice(from));
    return into;
  }

  function fenced(lines, at, into) {
    const [, mark] = FENCE.exec(lines[at]);
    const code = [];
    let end = at + 1;
    while (end < lines.length && !lines[end].trim().startsWith(mark)) { code.push(lines[end]); end += 1; }
    const block = made("pre");
    block.tabIndex = 0;
    block.append(made("code", code.join("\n")));
    into.append(block);
    return end + 1;
  }

  function paragraph(lines, at, into) {
    const block = made("p");
    let end = at;
    while (end < lines.length && lines[end].trim() && !FENCE.test(lines[end]) &&
      !(end > at && (ITEM.test(lines[end]) || /^#{1,6}\s/.test(lines[end])))) {
      if (end > at) block.append(made("br"));
      inline(block, lines[end]);
      end += 1;
    }
    into.append(block);
    return end;
  }

  function list(lines, at, into) {
    const block = made(/^\s*\d/.test(lines[at]) ? "ol" : "ul");
    if (block.tagName === "OL") block.start = parseInt(lines[at], 10);
    let end = at;
    for (; end < lines.length; end += 1) {
      const match = ITEM.exec(lines[end]);
      if (!match || /^\s*\d/.test(lines[end]) !== (block.tagName === "OL")) break;
      const item = inline(made("li"), match[2]);
      item.style.marginInlineStart = `${Math.min(match[1].length, 12) / 2}em`;
      block.append(item);
    }
    into.append(block);
    return end;
  }

  // Renders the common parts of Markdown (code, headings, lists, bold); everything else stays as written.
  function readable(source) {
    const into = document.createDocumentFragment(), lines = source.split("\n");
    for (let at = 0; at < lines.length;) {
      const heading = /^(#{1,6})\s+(.*)$/.exec(lines[at]);
      if (!lines[at].trim()) at += 1;
      else if (FENCE.test(lines[at])) at = fenced(lines, at, into);
      else if (heading) { const block = inline(made("p"), heading[2]); block.className = "heading"; into.append(block); at += 1; }
      else if (ITEM.test(lines[at])) at = list(lines, at, into);
      else at = paragraph(lines, at, into);
    }
    return into;
  }

  return {readable};
})();
