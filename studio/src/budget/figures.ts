/** Figures of the calculators, as people read them. */

import type { Figure } from "../api";
import { bytes, flops, measure, seconds } from "../format";

/** Where a figure's name has its words: "8 key/value heads, ratio" is figure.key_value_heads_ratio with n = 8. */
export function figureKey(name: string): [key: string, values: { n: string }] {
  const [, n = "", rest = name] = /^(\d+) (key\/value heads.*)$/.exec(name) ?? [];
  const key = rest.toLowerCase().replace(/[^a-z0-9]+/g, "_");
  return [`figure.${key}`, { n }];
}

const brief = (s: number): string => {
  if (s >= 1e-3) return seconds(s);
  return s >= 1e-6 ? `${(s * 1e6).toPrecision(3)} µs` : `${(s * 1e9).toPrecision(3)} ns`;
};

const UNITS: Record<string, (value: number) => string> = { bytes, FLOP: flops, s: brief };

export const spelled = ({ value, unit }: Figure): string => UNITS[unit]?.(value) ?? `${measure(value)} ${unit}`.trim();
