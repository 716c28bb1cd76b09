/** Evidence as files. */

import type { Cell, Evidence } from "../api";
import { download } from "../format";

const quoted = (cell: Cell): string => {
  const text = String(cell ?? "");
  return /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
};

export function csv({ table }: Evidence): string {
  const head = table.columns.map(({ name, unit }) => (unit ? `${name} (${unit})` : name));
  return [head, ...table.rows].map((row) => row.map(quoted).join(",")).join("\n") + "\n";
}

export const downloadCsv = (evidence: Evidence): void => download(`${evidence.lab}.csv`, csv(evidence), "text/csv");

export const downloadJson = (evidence: Evidence): void =>
  download(`${evidence.lab}.json`, JSON.stringify(evidence, null, 2) + "\n", "application/json");
