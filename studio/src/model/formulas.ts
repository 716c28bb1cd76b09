/** What each kind of module computes, as it is written in papers. Small HTML: only i, sub, sup, br and entities. */

import type { Module } from "../api";
import type { Key } from "../i18n";

const activation = (module: Module): string => String(module.detail.activation ?? "act").replace("_tanh", "");
const gated = (module: Module): boolean => Boolean(module.detail.gated ?? module.children.length > 2);

/** What the residual stream becomes, by the placement of the norms. */
const SUBLAYER: Record<string, (body: string) => string> = {
  pre: (body) => `<i>x</i> ← <i>x</i> + ${body}(norm(<i>x</i>))`,
  sandwich: (body) => `<i>x</i> ← <i>x</i> + norm(${body}(norm(<i>x</i>)))`,
  post: (body) => `<i>x</i> ← norm(<i>x</i> + ${body}(<i>x</i>))`,
};

const FORMULAS: Record<string, (module: Module) => string> = {
  RMSNorm: () => "<i>y</i> = <i>x</i> / √(mean(<i>x</i>²) + ε) · <i>w</i>",
  LayerNorm: () => "<i>y</i> = (<i>x</i> − mean(<i>x</i>)) / √(var(<i>x</i>) + ε) · <i>w</i> + <i>b</i>",
  Attention: () =>
    "<i>y</i> = <i>W</i><sub>out</sub> · attend(<i>W</i><sub>q</sub> <i>x</i>, <i>W</i><sub>k</sub> <i>x</i>, <i>W</i><sub>v</sub> <i>x</i>)",
  Attend: () => "<i>y</i> = softmax(<i>s</i> · <i>q k</i><sup>⊤</sup> + mask) <i>v</i>",
  FeedForward: (m) =>
    gated(m)
      ? `<i>y</i> = <i>W</i><sub>down</sub> (${activation(m)}(<i>W</i><sub>gate</sub> <i>x</i>) ⊙ <i>W</i><sub>up</sub> <i>x</i>)`
      : `<i>y</i> = <i>W</i><sub>down</sub> ${activation(m)}(<i>W</i><sub>up</sub> <i>x</i>)`,
  Linear: (m) => (m.tensors.length > 1 ? "<i>y</i> = <i>W x</i> + <i>b</i>" : "<i>y</i> = <i>W x</i>"),
  Head: (m) => (m.detail.tied ? "logits = <i>E x</i>" : "logits = <i>W x</i>"),
  Embedding: () => "<i>y</i> = <i>E</i>[token]",
  Rope: () =>
    "(<i>a</i>, <i>b</i>) ↦ (<i>a</i> cos θ − <i>b</i> sin θ, <i>b</i> cos θ + <i>a</i> sin θ), θ = <i>p</i> · base<sup>−2<i>j</i>/<i>d</i></sup>",
  Block: (m) => ["attention", "ffn"].map(SUBLAYER[String(m.detail.placement ?? "pre")] ?? SUBLAYER.pre!).join("<br>"),
};

export const formula = (module: Module): string | undefined => FORMULAS[module.kind]?.(module);

const EXPLAINED: Record<string, Key> = {
  Decoder: "kind.Decoder",
  Encoder: "kind.Encoder",
  Block: "kind.Block",
  Attention: "kind.Attention",
  Attend: "kind.Attend",
  FeedForward: "kind.FeedForward",
  Embedding: "kind.Embedding",
  Head: "kind.Head",
  Linear: "kind.Linear",
  RMSNorm: "kind.RMSNorm",
  LayerNorm: "kind.LayerNorm",
  Rope: "kind.Rope",
};

export const explained = (module: Module): Key | undefined => EXPLAINED[module.kind];
