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

/** Equal for modules that differ in nothing but their place. */
export function signature(module: Module): string {
  const shapes = module.tensors.map((tensor) => `${tensor.shape}${tensor.stored}`);
  return JSON.stringify([module.kind, module.detail, shapes, module.children.map(signature)]);
}

/** One branch off the residual stream. outside: the last norm sits on the stream itself, after the addition. */
export interface Unit {
  before: Module | null;
  body: Module;
  after: Module | null;
  outside: boolean;
}

/**
 * The branches of a block, told from the order of its children:
 *
 *     norm body norm body              before each body (Llama)
 *     norm body norm norm body norm    around each body (Gemma)
 *     body norm body norm              on the stream, after each addition (BERT)
 */
export function units(block: Module): Unit[] {
  const { children } = block;
  const outside = children.length > 0 && !isNorm(children[0]!);
  const norm = (module: Module | undefined) => (module && isNorm(module) ? module : null);
  return children.flatMap((body, i) => {
    if (isNorm(body)) return [];
    const after = norm(children[i + 1]);
    const belongsToNext = !outside && children[i + 2] && !isNorm(children[i + 2]!);
    return [{ before: outside ? null : norm(children[i - 1]), body, after: belongsToNext ? null : after, outside }];
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
    const [group = module.name, ...rest] = path;
    const part = sums.get(path.join(".")) ?? { group, name: rest.join(".") || group, value: 0 };
    sums.set(path.join("."), { ...part, value: part.value + own });
    module.children.forEach(visit);
  };
  visit(tree);
  const total = tree[measure];
  return [...sums.values()].filter((part) => part.value > total * 1e-9).sort((a, b) => b.value - a.value);
}
