/** Numbers as people read them. Digits are grouped the same way in both languages. */

import type { Cell } from "./api";

const grouped = new Intl.NumberFormat("en-US", { maximumFractionDigits: 2 });

export const count = (n: number): string => grouped.format(n);

const scaled = (n: number, base: number, units: string[]): string => {
  const step = n > 0 ? Math.min(units.length - 1, Math.max(0, Math.floor(Math.log(n) / Math.log(base)))) : 0;
  const value = n / base ** step;
  return `${value.toFixed(step === 0 || value >= 100 ? 0 : value >= 10 ? 1 : 2)} ${units[step]}`.trim();
};

export const compact = (n: number): string => scaled(n, 1000, ["", "k", "M", "B", "T"]);
export const bytes = (n: number): string => scaled(n, 1024, ["B", "KiB", "MiB", "GiB", "TiB"]);
/** As makers of hardware state it, in powers of 1000. */
export const capacity = (n: number): string => scaled(n, 1000, ["B", "kB", "MB", "GB", "TB"]);
export const flops = (n: number): string => scaled(n, 1000, ["FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP"]);

/** A share or probability: three figures, down to a floor that still says "not zero". */
export const percent = (p: number): string => {
  const value = p * 100;
  if (value === 0) return "0 %";
  if (value < 0.01) return "< 0.01 %";
  return `${value >= 99.95 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2)} %`;
};

export const seconds = (s: number): string => {
  if (s < 0.9995) return `${(s * 1000).toFixed(0)} ms`;
  if (s < 59.5) return `${Number(s.toFixed(s < 10 ? 1 : 0))} s`;
  const [minutes, rest] = [Math.floor(Math.round(s) / 60), Math.round(s) % 60];
  return rest ? `${minutes} min ${rest} s` : `${minutes} min`;
};

/** A measured value with at most four significant figures: 0.1234, 1,234.5, 79.63M, 1.20e-5. */
export const measure = (n: number): string => {
  const size = Math.abs(n);
  if (size >= 1e15 || (size < 1e-3 && n !== 0)) return n.toExponential(2);
  if (size >= 1e6)
    return new Intl.NumberFormat("en-US", { notation: "compact", maximumSignificantDigits: 4 }).format(n);
  return new Intl.NumberFormat("en-US", { maximumSignificantDigits: size >= 1000 ? 7 : 4 }).format(n);
};

/** A token as it can be shown on one line: spaces and line ends made visible. */
export const visible = (token: { text: string; display?: string }): string =>
  (token.display ?? token.text).replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/^ | $/g, "␣");

const quoted = (cell: Cell): string => {
  const text = String(cell ?? "");
  return /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
};

export const csv = (rows: Cell[][]): string => rows.map((row) => row.map(quoted).join(",")).join("\n") + "\n";

export const downloadCsv = (name: string, rows: Cell[][]): void => download(`${name}.csv`, csv(rows), "text/csv");

export const downloadJson = (name: string, value: unknown): void =>
  download(`${name}.json`, JSON.stringify(value, null, 2) + "\n", "application/json");

/** A file for the user to keep. */
export function download(name: string, text: string, type: string): void {
  const url = URL.createObjectURL(new Blob([text], { type }));
  Object.assign(document.createElement("a"), { href: url, download: name }).click();
  URL.revokeObjectURL(url);
}
