// Renders texts of data sets and models as text nodes and plain tags. Nothing in them is executed,
// loaded or turned into a link. A long text appears in parts: the browser takes seconds for thousands
// of tags, and forever for some characters.
const text = (() => {
  const PART = 50000, MAX_TAGS = 2000;  // of what appears at once: characters and tags
  const LONG_LINE = 10000;  // a longer line is shown without markup
  const FENCE = /^\s{0,20}(`{3,}|~{3,})\s*([\w+-]*)/;
  const ITEM = /^(\s*)(?:[-*+]|\d{1,3}[.)])\s+(.*)$/;
  const INLINE = /(`+)(.+?)\1|(\*\*|__)(?=\S)(.+?\S?)\3|(?<![\w*])\*(?=[^\s*])([^*\n]+?)\*(?![\w*])/g;
  const MARKS = /(\p{M}{20})(\p{M}+)/gu;
  const DIRECTIONS = /[\u202a-\u202e\u2066-\u2069]/g;

  // Replaces characters that change the order of the text around them, and shortens piles of
  // accents: the browser's layout takes quadratic time for both.
  const calm = (source) => source
    .replace(DIRECTIONS, "\ufffd")
    .replace(MARKS, (_, first, rest) => `${first}[${rest.length} more accents]`);

  const made = (tag, content) => {
    const node = document.createElement(tag);
    if (content !== undefined) node.textContent = calm(content);
    return node;
  };

  // Returns where a part of a text that begins at `from` ends; never within a character.
  function cut(source, from, size) {
    const end = Math.min(source.length, from + size);
    return end < source.length && source.charCodeAt(end) >= 0xdc00 && source.charCodeAt(end) < 0xe000 ? end + 1 : end;
  }

  // Appends a part, and a button that appends the next one. `next` returns a part and how many
  // characters are left.
  function inParts(into, next) {
    const [part, left] = next();
    if (!(left > 0)) { into.append(part); return; }
    const button = document.createElement("button");
    button.type = "button";
    button.className = "more";
    button.textContent = `show more (${left.toLocaleString("en-US")} characters)`;
    button.onclick = () => {
      const rest = document.createDocumentFragment();
      inParts(rest, next);
      button.replaceWith(rest);
    };
    into.append(part, button);
  }

  // Returns a text as it is written, in preformatted blocks.
  function plain(source, size = PART) {
    const into = document.createDocumentFragment();
    let from = 0;
    inParts(into, () => {
      const end = cut(source, from, size), block = made("pre", source.slice(from, end));
      block.className = "raw";
      from = end;
      return [block, source.length - end];
    });
    return into;
  }

  function inline(into, source) {
    let from = 0;
    for (const match of source.matchAll(INLINE)) {
      into.append(calm(source.slice(from, match.index)));
      if (match[2] !== undefined) into.append(made("code", match[2]));
      else if (match[4] !== undefined) into.append(made("strong", match[4]));
      else into.append(made("em", match[5]));
      from = match.index + match[0].length;
    }
    into.append(calm(source.slice(from)));
    return into;
  }

  // Splits a text into lines, and long lines into pieces; `glued` are the pieces that continue a line.
  function split(source) {
    const lines = [], glued = new Set(), long = new Set();
    for (const line of source.split("\n")) {
      if (line.length <= LONG_LINE) { lines.push(line); continue; }
      for (let from = 0; from < line.length;) {
        const end = cut(line, from, LONG_LINE);
        if (from) glued.add(lines.length);
        long.add(lines.length);
        lines.push(line.slice(from, end));
        from = end;
      }
    }
    return {lines, glued, long};
  }

  // Reads the blocks of a text, one after the other.
  function reader(source) {
    const {lines, glued, long} = split(source);
    let at = 0, fence = null, tags = 0, characters = 0, left = source.length;
    const hasRoom = () => at < lines.length && tags < MAX_TAGS && characters < PART;

    function take() {
      const line = lines[at];
      characters += line.length + 1;
      left -= line.length + (glued.has(at + 1) ? 0 : 1);
      at += 1;
      return line;
    }

    function code(into) {
      const block = made("pre"), content = [];
      while (hasRoom() && !lines[at].trimStart().startsWith(fence)) content.push(take());
      if (at < lines.length && lines[at].trimStart().startsWith(fence)) { take(); fence = null; }
      block.tabIndex = 0;
      block.append(made("code", content.join("\n")));
      tags += 2;
      into.append(block);
    }

    const isBlock = (line) => !line.trim() || FENCE.test(line) || ITEM.test(line) || /^#{1,6}\s/.test(line);

    function paragraph(into) {
      const block = made("p"), first = at;
      while (hasRoom() && (at === first || long.has(at) || !isBlock(lines[at]))) {
        if (at > first && !glued.has(at)) { block.append(made("br")); tags += 1; }
        const before = block.childElementCount;
        if (long.has(at)) block.append(calm(take())); else inline(block, take());
        tags += block.childElementCount - before;
      }
      tags += 1;
      into.append(block);
    }

    function list(into) {
      const ordered = /^\s*\d/.test(lines[at]), block = made(ordered ? "ol" : "ul");
      if (ordered) block.start = parseInt(lines[at], 10);
      while (hasRoom() && !long.has(at)) {
        const match = ITEM.exec(lines[at]);
        if (!match || /^\s*\d/.test(lines[at]) !== ordered) break;
        take();
        const item = inline(made("li"), match[2]);
        item.style.marginInlineStart = `${Math.min(match[1].length, 12) / 2}em`;
        tags += 1 + item.childElementCount;
        block.append(item);
      }
      into.append(block);
    }

    function heading(into, content) {
      const block = inline(made("p"), content);
      block.className = "heading";
      tags += 1 + block.childElementCount;
      into.append(block);
    }

    return () => {
      const part = document.createDocumentFragment();
      tags = characters = 0;
      while (hasRoom()) {
        const line = lines[at], title = long.has(at) ? null : /^(#{1,6})\s+(.*)$/.exec(line);
        if (fence !== null) code(part);
        else if (!line.trim()) take();
        else if (FENCE.test(line)) { [, fence] = FENCE.exec(line); take(); if (at >= lines.length) code(part); }
        else if (title) { take(); heading(part, title[2]); }
        else if (!long.has(at) && ITEM.test(line)) list(part);
        else paragraph(part);
      }
      return [part, at < lines.length ? Math.max(1, left) : 0];
    };
  }

  // Renders the common parts of Markdown (code, headings, lists, bold); everything else stays as written.
  function readable(source) {
    const into = document.createDocumentFragment();
    inParts(into, reader(source));
    return into;
  }

  return {readable, plain, calm, cut, inParts, PART};
})();
