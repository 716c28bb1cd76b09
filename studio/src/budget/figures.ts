/** Figures of the calculators, as people read them. */

import type { Figure } from "../api";
import { bytes, count, flops, measure, seconds } from "../format";
import { t } from "../state.svelte";

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

/** Beyond a thousand, nobody reads the decimals. */
const plain = (value: number): string => (value >= 1000 ? count(Math.round(value)) : measure(value));

const UNITS: Record<string, (value: number) => string> = {
  bytes,
  FLOP: flops,
  s: brief,
  h: (value) => t("figure.hours", { n: plain(value) }),
  tokens: (value) => t("tokens.count", { n: plain(value) }),
  "tokens/s": (value) => t("timing.rate", { n: plain(value) }),
};

export const spelled = ({ value, unit }: Figure): string => UNITS[unit]?.(value) ?? `${plain(value)} ${unit}`.trim();
