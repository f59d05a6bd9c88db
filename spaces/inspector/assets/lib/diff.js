// Word-level diff of two texts (Myers, "An O(ND) Difference Algorithm and Its Variations", 1986).
const diff = (() => {
  const MOST = 1500;  // differing words; with more, the whole middle is shown as different
  const LONGEST = 200000;  // characters between the first and the last difference; the same

  const words = (text) => text.match(/\s+|[\p{L}\p{N}_]+|[^\s\p{L}\p{N}_]/gu) ?? [];
  const isSpace = (character) => character !== undefined && /\s/.test(character);

  function middle(one, other) {
    const most = Math.min(one.length + other.length, MOST), trail = [];
    let reach = new Int32Array(2 * most + 3);
    for (let steps = 0; steps <= most; steps += 1) {
      trail.push(reach.slice());
      for (let line = -steps; line <= steps; line += 2) {
        const at = line + most + 1;
        let x = line === -steps || (line !== steps && reach[at - 1] < reach[at + 1]) ? reach[at + 1] : reach[at - 1] + 1;
        let y = x - line;
        while (x < one.length && y < other.length && one[x] === other[y]) { x += 1; y += 1; }
        reach[at] = x;
        if (x >= one.length && y >= other.length) return walked(one, other, trail, most);
      }
    }
    return [["first", one.join("")], ["second", other.join("")]];
  }

  function walked(one, other, trail, most) {
    const found = [];
    let x = one.length, y = other.length;
    for (let steps = trail.length - 1; steps >= 0; steps -= 1) {
      const reach = trail[steps], line = x - y, at = line + most + 1;
      const down = line === -steps || (line !== steps && reach[at - 1] < reach[at + 1]);
      const fromX = steps === 0 ? 0 : reach[down ? at + 1 : at - 1];
      const fromY = steps === 0 ? 0 : fromX - (down ? line + 1 : line - 1);
      while (x > fromX && y > fromY) { x -= 1; y -= 1; found.push(["both", one[x]]); }
      if (steps === 0) break;
      if (down) { y -= 1; found.push(["second", other[y]]); } else { x -= 1; found.push(["first", one[x]]); }
    }
    return found.reverse();
  }

  // Returns how many characters at the start are equal, up to the end of a white space in both texts.
  function sameStart(first, second) {
    const most = Math.min(first.length, second.length);
    let at = 0;
    while (at < most && first[at] === second[at]) at += 1;
    while (at > 0 && !(isSpace(first[at - 1]) && !isSpace(first[at]) && !isSpace(second[at]))) at -= 1;
    return at;
  }

  // Returns how many characters at the end are equal, beyond the first `start`, from a white space on.
  function sameEnd(first, second, start) {
    const most = Math.min(first.length, second.length) - start;
    let at = 0;
    while (at < most && first[first.length - 1 - at] === second[second.length - 1 - at]) at += 1;
    while (at > 0 && !(isSpace(first[first.length - at]) && !isSpace(first[first.length - at - 1]) &&
      !isSpace(second[second.length - at - 1]))) at -= 1;
    return at;
  }

  // Returns runs of [which, text]; which is `both`, `first` or `second`.
  function compared(first, second) {
    if (first === second) return first ? [["both", first]] : [];
    const start = sameStart(first, second), end = sameEnd(first, second, start);
    const one = first.slice(start, first.length - end), other = second.slice(start, second.length - end);
    const parts = [["both", first.slice(0, start)],
      ...(Math.max(one.length, other.length) > LONGEST ? [["first", one], ["second", other]] : middle(words(one), words(other))),
      ["both", first.slice(first.length - end)]];
    const runs = [];
    for (const [which, text] of parts) {
      if (!text) continue;
      const last = runs[runs.length - 1];
      if (last && last[0] === which) last[1] += text; else runs.push([which, text]);
    }
    return runs;
  }

  return {compared};
})();
