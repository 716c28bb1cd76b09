/** Scales and ticks of a small chart. */

export interface Scale {
  at: (value: number) => number;
  ticks: number[];
}

const STEPS = [1, 2, 5, 10];

function linearTicks(low: number, high: number, wanted: number): number[] {
  const rough = (high - low) / wanted;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = STEPS.find((s) => s * power >= rough)! * power;
  const first = Math.ceil(low / step - 1e-9);
  const last = Math.floor(high / step + 1e-9);
  return Array.from({ length: last - first + 1 }, (_, i) => Number(((first + i) * step).toPrecision(12)));
}

/** Powers of ten; with fewer than three of them, twos and fives as well. */
function logTicks(low: number, high: number): number[] {
  const powers = Array.from(
    { length: Math.ceil(Math.log10(high)) - Math.floor(Math.log10(low)) + 1 },
    (_, i) => 10 ** (Math.floor(Math.log10(low)) + i),
  );
  const within = (steps: number[]) =>
    powers
      .flatMap((p) => steps.map((s) => Number((s * p).toPrecision(3))))
      .filter((v) => v >= low * 0.999 && v <= high * 1.001);
  const tens = within([1]);
  return tens.length >= 3 ? tens : within([1, 2, 5]);
}

/** Maps values (those that can be drawn) onto pixels from..to. A linear axis that starts near zero starts at zero. */
export function makeScale(values: number[], log: boolean, from: number, to: number, wanted = 5): Scale {
  let low = Math.min(...values);
  let high = Math.max(...values);
  if (!log) {
    if (low > 0 && low < high * 0.5) low = 0;
    if (low === high) [low, high] = low === 0 ? [0, 1] : [Math.min(0, low), Math.max(0, high)];
    const margin = (high - low) * 0.04;
    if (low !== 0) low -= margin;
    if (high !== 0) high += margin;
  } else {
    [low, high] = low === high ? [low / 2, high * 2] : [low / 1.15, high * 1.15];
  }
  const place = log ? Math.log10 : (value: number) => value;
  const span = place(high) - place(low);
  return {
    at: (value) => from + ((place(value) - place(low)) / span) * (to - from),
    ticks: log ? logTicks(low, high) : linearTicks(low, high, wanted),
  };
}
