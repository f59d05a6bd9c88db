// Word-level diff of two texts (Myers, "An O(ND) Difference Algorithm and Its Variations", 1986).
const diff = (() => {
  const MOST = 1500;  // differing words; with more, the whole middle is shown as different

  const words = (text) => text.match(/\s+|[\p{L}\p{N}_]+|[^\s\p{L}\p{N}_]/gu) ?? [];

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
    return [...one.map((text) => ["first", text]), ...other.map((text) => ["second", text])];
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

  // Returns runs of [which, text]; which is `both`, `first` or `second`.
  function compared(first, second) {
    const one = words(first), other = words(second);
    let start = 0, end = 0;
    while (start < one.length && start < other.length && one[start] === other[start]) start += 1;
    while (end < one.length - start && end < other.length - start &&
      one[one.length - 1 - end] === other[other.length - 1 - end]) end += 1;
    const parts = [
      ...one.slice(0, start).map((text) => ["both", text]),
      ...middle(one.slice(start, one.length - end), other.slice(start, other.length - end)),
      ...one.slice(one.length - end).map((text) => ["both", text]),
    ];
    const runs = [];
    for (const [which, text] of parts) {
      const last = runs[runs.length - 1];
      if (last && last[0] === which) last[1] += text; else runs.push([which, text]);
    }
    return runs;
  }

  return {compared};
})();
