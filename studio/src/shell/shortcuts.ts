/** The keys of the studio: what the help shows, and what the page does on its own keys. */

import type { Key } from "../i18n";
import { go, prefs, type Tint } from "../state.svelte";

export const SHORTCUTS: { title: Key; keys: [string[], Key][] }[] = [
  {
    title: "keys.everywhere",
    keys: [
      [["1", "2", "3", "4", "5"], "keys.pages"],
      [["l"], "keys.language"],
      [["?"], "keys.help"],
    ],
  },
  {
    title: "keys.chat",
    keys: [
      [["/"], "keys.compose"],
      [["Enter"], "keys.send"],
      [["Shift Enter"], "keys.newline"],
      [["Esc"], "keys.stop"],
      [["t"], "keys.tint"],
    ],
  },
  {
    title: "keys.tokens",
    keys: [
      [["←", "→"], "keys.tokens.move"],
      [["Home", "End"], "keys.tokens.ends"],
      [["Enter"], "keys.tokens.enter"],
      [["↑", "↓"], "keys.alternatives.move"],
      [["Enter"], "keys.alternatives.branch"],
      [["Esc"], "keys.alternatives.back"],
    ],
  },
  {
    title: "keys.engine",
    keys: [
      [["←", "→"], "keys.engine.steps"],
      [["←", "→", "↑", "↓"], "keys.engine.pages"],
      [["Enter"], "keys.engine.pick"],
    ],
  },
  {
    title: "keys.heat",
    keys: [
      [["←", "→", "↑", "↓"], "keys.heat.move"],
      [["Home", "End"], "keys.heat.ends"],
      [["Enter"], "keys.heat.pick"],
    ],
  },
];

const nextTint: Record<Tint, Tint> = { off: "probability", probability: "entropy", entropy: "off" };

const ACTIONS: Record<string, () => void> = {
  "1": () => go("chat"),
  "2": () => go("model"),
  "3": () => go("labs"),
  "4": () => go("budget"),
  "5": () => go("engine"),
  l: () => (prefs.lang = prefs.lang === "en" ? "zh" : "en"),
  t: () => (prefs.tint = nextTint[prefs.tint]),
  "/": () => document.getElementById("composer")?.focus(),
};

/** Single keys act only where nobody is typing and no dialog is open. */
export function onShortcut(event: KeyboardEvent, help: () => void): void {
  const typing = (event.target as HTMLElement).closest(
    "input:not([type=radio], [type=range]), textarea, select, dialog",
  );
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  const action = event.key === "?" ? help : ACTIONS[event.key];
  if (!action) return;
  event.preventDefault();
  action();
}
