/** A heat map's geometry and shades, apart from how they are drawn. */

export const LEVELS = 24;

export interface Frame {
  left: number;
  top: number;
  cellWide: number;
  cellHigh: number;
  upright: boolean;
}

const CHARACTER = 7;
const clamp = (value: number, low: number, high: number) => Math.min(Math.max(value, low), high);
const longest = (names: string[]) => Math.max(...names.map((name) => name.length)) * CHARACTER + 12;

/** Square cells for square maps; cells that hold words are wide. Names wider than their columns stand upright. */
export function frame(rows: string[], columns: string[], room: number, worded: boolean): Frame {
  const square = rows.length === columns.length;
  const left = clamp(longest(rows), 24, 110) + 18;
  const fitting = Math.floor((room - left - 6) / columns.length);
  const narrow = square ? clamp(Math.min(fitting, Math.floor(480 / rows.length)), 3, 36) : clamp(fitting, 3, 58);
  const cellWide = worded ? clamp(fitting, 70, 130) : narrow;
  const upright = !worded && longest(columns) > cellWide + 8;
  const cellHigh = worded ? 20 : square ? cellWide : clamp(Math.floor(560 / rows.length), 3, 18);
  const top = (upright ? clamp(longest(columns), 24, 140) : 22) + 20;
  return { left, top, cellWide, cellHigh, upright };
}

/** Every how many names one is written, so that they do not meet. */
export const thinned = (cell: number): number => Math.max(1, Math.ceil(13 / cell));

/** -LEVELS ... LEVELS; root brings out small values. */
export function shade(value: number, most: number, root: boolean): number {
  const part = Math.min(1, Math.abs(value) / (most || 1));
  return Math.sign(value) * Math.round(LEVELS * (root ? Math.sqrt(part) : part));
}

/** One path per shade that occurs: thousands of cells, a few dozen elements. */
export function paths(values: number[][], most: number, root: boolean, at: Frame): [level: number, d: string][] {
  const found = new Map<number, string>();
  values.forEach((row, r) =>
    row.forEach((value, c) => {
      const level = shade(value, most, root);
      if (level === 0) return;
      const [x, y] = [at.left + c * at.cellWide, at.top + r * at.cellHigh];
      const cell = `M${x} ${y}h${at.cellWide}v${at.cellHigh}h${-at.cellWide}z`;
      found.set(level, (found.get(level) ?? "") + cell);
    }),
  );
  return [...found];
}

export const cut = (name: string, pixels: number): string => {
  const room = Math.max(2, Math.floor(pixels / CHARACTER));
  return name.length > room ? `${name.slice(0, room - 1)}…` : name;
};
