/** Evidence as a table. */

import type { Cell, Evidence } from "../api";

export const sheet = ({ table }: Evidence): Cell[][] => [
  table.columns.map(({ name, unit }) => (unit ? `${name} (${unit})` : name)),
  ...table.rows,
];
