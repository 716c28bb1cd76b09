/** The last steps as lanes: a row for each sequence, a column for each step. */

import type { EngineSpan, EngineStep } from "../api";

export const KINDS = ["read", "drawn", "right", "wrong"] as const;
export type Kind = (typeof KINDS)[number];

/** Tokens of a span by what they are: those beyond the last that is not a guess are the prompt's, or computed again. */
export function parts([, , count, drafts, accepted]: EngineSpan): Record<Kind, number> {
  const own = count - drafts;
  return { read: own > 1 ? own : 0, drawn: own > 1 ? 0 : own, right: accepted, wrong: drafts - accepted };
}

export function totals(step: EngineStep): Record<Kind, number> {
  const sum = { read: 0, drawn: 0, right: 0, wrong: 0 };
  for (const span of step.spans) for (const kind of KINDS) sum[kind] += parts(span)[kind];
  return sum;
}

export const tokens = (step: EngineStep): number => step.spans.reduce((sum, span) => sum + span[2], 0);

/** The sequences of these steps, the latest ones, oldest first. */
export function lanes(steps: EngineStep[], most: number): number[] {
  const ids = new Set(steps.flatMap((step) => step.spans.map(([id]) => id)));
  return [...ids].sort((a, b) => a - b).slice(-most);
}

export interface Mark {
  kind: Kind;
  column: number;
  lane: number;
  from: number;
  size: number;
}

/** What to draw: each span fills its cell from below, a share for each kind of token. */
export function marks(steps: EngineStep[], ids: number[]): Mark[] {
  const row = new Map(ids.map((id, lane) => [id, lane]));
  return steps.flatMap((step, column) =>
    step.spans.flatMap((span) => {
      const lane = row.get(span[0]);
      if (lane === undefined) return [];
      const found = parts(span);
      let from = 0;
      return KINDS.filter((kind) => found[kind]).map((kind) => {
        const mark = { kind, column, lane, from, size: found[kind] / span[2] };
        from += mark.size;
        return mark;
      });
    }),
  );
}
