/** What a view must know of a model before it asks. */

import type { Model } from "../api";

const fact = (model: Model, key: string): number => Number(model.facts.find((one) => one.key === key)?.value) || 1;

export const numbers = (count: number): number[] => Array.from({ length: count }, (_, i) => i);
export const layersOf = (model: Model): number => fact(model, "layers");
export const headsOf = (model: Model): number => fact(model, "heads");

/** Names of tokens on two axes are told apart by their place. */
export const placed = (tokens: string[]): string[] => tokens.map((token, i) => `${i} ${token}`);
