/** Reading the module tree: paths, repeated layers, units of a block, what adds up to what. */

import type { Module } from "../api";

export const isNorm = (module: Module): boolean => module.kind.endsWith("Norm");
export const isBlock = (module: Module): boolean => /(Block|Layer)$/.test(module.kind);

/** The modules from the root down to `id`; empty if there is no such module. */
export function trail(tree: Module, id: string): Module[] {
  if (tree.id === id) return [tree];
  for (const child of tree.children) {
    const rest = trail(child, id);
    if (rest.length) return [tree, ...rest];
  }
  return [];
}

/** What the residual stream passes, in order: embedding, every block, final norm, head. A plain list of blocks is opened. */
export const stages = (tree: Module): Module[] =>
  tree.children.flatMap((child) => (child.children.length && child.children.every(isBlock) ? child.children : [child]));

/** Equal for modules that compute alike, wherever they are and however they are stored. */
export function signature(module: Module): string {
  const shapes = module.tensors.map((tensor) => tensor.shape);
  return JSON.stringify([module.kind, module.detail, shapes, module.children.map(signature)]);
}

/** One branch off the residual stream. outside: the norm after it sits on the stream itself, behind the addition. */
export interface Unit {
  before: Module | null;
  body: Module;
  after: Module | null;
  outside: boolean;
}

/**
 * The branches of a block, by its norms' placement:
 *
 *     pre        x + body(norm(x))          Llama
 *     sandwich   x + norm(body(norm(x)))    Gemma
 *     post       norm(x + body(x))          BERT
 */
export function units(block: Module): Unit[] {
  const child = (name: string) => block.children.find((other) => other.name === name) ?? null;
  const outside = block.detail.placement === "post";
  return block.children
    .filter((body) => !isNorm(body))
    .map((body) => {
      const norm = child(`${body.name}_norm`);
      const after = outside ? norm : child(`${body.name}_post_norm`);
      return { before: outside ? null : norm, body, after, outside };
    });
}

export type Measure = "parameters" | "bytes" | "flops_per_token";

export interface Part {
  group: string;
  name: string;
  value: number;
}

/** What each kind of place holds by itself, summed over the layers, largest first. */
export function parts(tree: Module, measure: Measure): Part[] {
  const sums = new Map<string, Part>();
  const visit = (module: Module) => {
    const own = module[measure] - module.children.reduce((sum, child) => sum + child[measure], 0);
    const path = module.id.split(".").filter((piece) => piece && piece !== "layers" && !/^\d+$/.test(piece));
    const [first = module.name, ...rest] = path;
    const group = isNorm(module) ? "norms" : first;
    const name = (isNorm(module) ? path : rest).join(".") || first;
    sums.set(path.join("."), { group, name, value: (sums.get(path.join("."))?.value ?? 0) + own });
    module.children.forEach(visit);
  };
  visit(tree);
  const total = tree[measure];
  return [...sums.values()].filter((part) => part.value > total * 1e-9).sort((a, b) => b.value - a.value);
}
