/** Squarified treemap (Bruls, Huizing & van Wijk 2000): rectangles as square as the order allows. */

export interface Box {
  x: number;
  y: number;
  w: number;
  h: number;
}

/** One box per value (descending) inside `frame`, areas in proportion. */
export function treemap(values: number[], frame: Box): Box[] {
  const boxes: Box[] = [];
  let rest = values;
  let { x, y, w, h } = frame;
  while (rest.length) {
    const sum = rest.reduce((a, b) => a + b, 0);
    const side = Math.min(w, h);
    const unit = (w * h) / sum;
    const taken = rowLength(
      rest.map((value) => value * unit),
      side,
    );
    const row = rest.slice(0, taken);
    const depth = (row.reduce((a, b) => a + b, 0) * unit) / side;
    let along = 0;
    for (const value of row) {
      const length = (value * unit) / depth;
      boxes.push(w >= h ? { x, y: y + along, w: depth, h: length } : { x: x + along, y, w: length, h: depth });
      along += length;
    }
    if (w >= h) [x, w] = [x + depth, w - depth];
    else [y, h] = [y + depth, h - depth];
    rest = rest.slice(taken);
  }
  return boxes;
}

/** How many areas the next row takes: more while its worst proportion improves. */
function rowLength(areas: number[], side: number): number {
  let worst = Infinity;
  let sum = 0;
  for (const [i, area] of areas.entries()) {
    sum += area;
    const thickness = sum / side;
    const proportions = areas.slice(0, i + 1).map((a) => Math.max(a / thickness ** 2, thickness ** 2 / a));
    const now = Math.max(...proportions);
    if (now > worst) return i;
    worst = now;
  }
  return areas.length;
}
