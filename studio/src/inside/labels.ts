/** Where words beside points go, so that they meet as little as possible. */

interface Place {
  x: number;
  y: number;
}

const CHARACTER = 7.7;
const LINE = 14;

const meet = (a: Place, b: Place, wideA: number, wideB: number): boolean =>
  a.x < b.x + wideB && b.x < a.x + wideA && Math.abs(a.y - b.y) < LINE;

/** For each point the first free place of: right, left, above, below it; right if none is. */
export function labels(points: (Place & { token: string })[]): Place[] {
  const taken: (Place & { wide: number })[] = [];
  return points.map(({ x, y, token }) => {
    const wide = token.length * CHARACTER;
    const tried = [
      { x: x + 7, y: y + 4 },
      { x: x - 7 - wide, y: y + 4 },
      { x: x - wide / 2, y: y - 8 },
      { x: x - wide / 2, y: y + 17 },
    ];
    const place = tried.find((one) => !taken.some((other) => meet(one, other, wide, other.wide))) ?? tried[0]!;
    taken.push({ ...place, wide });
    return place;
  });
}
