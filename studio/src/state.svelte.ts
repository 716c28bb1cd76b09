/** What the whole studio shares: preferences (kept in this browser), the route, the server's models. */

import { api, type ModelSummary, type Sampling } from "./api";
import { translate, type Key, type Lang, type Values } from "./i18n";

export type Theme = "system" | "light" | "dark";
export type Tint = "off" | "probability" | "entropy";
export const PAGES = ["chat", "model", "labs", "budget", "engine"] as const;
export type Page = (typeof PAGES)[number];

export const DEFAULT_SAMPLING: Sampling = {
  temperature: 0.7,
  top_k: 0,
  top_p: 1,
  min_p: 0,
  repetition_penalty: 1,
  presence_penalty: 0,
  frequency_penalty: 0,
  seed: null,
  max_tokens: 256,
};

interface Preferences {
  lang: Lang;
  theme: Theme;
  tint: Tint;
  chatModel: string;
  sampling: Sampling;
}

const KEY = "cutaway.preferences";

function loadPreferences(): Preferences {
  const fresh: Preferences = {
    lang: navigator.language.startsWith("zh") ? "zh" : "en",
    theme: "system",
    tint: "probability",
    chatModel: "",
    sampling: { ...DEFAULT_SAMPLING },
  };
  const stored = JSON.parse(localStorage.getItem(KEY) ?? "{}") as Partial<Preferences>;
  return { ...fresh, ...stored, sampling: { ...fresh.sampling, ...stored.sampling } };
}

export const prefs = $state(loadPreferences());

export const t = (key: Key, values?: Values): string => translate(prefs.lang, key, values);

/** Keeps the browser's storage and the root element in step with the preferences. */
export function followPreferences(): void {
  $effect(() => localStorage.setItem(KEY, JSON.stringify(prefs)));
  $effect(() => {
    const root = document.documentElement;
    root.lang = prefs.lang === "zh" ? "zh-CN" : "en";
    root.style.colorScheme = prefs.theme === "system" ? "light dark" : prefs.theme;
  });
}

/** #/labs/kv-cache is page "labs" with rest ["kv-cache"]. */
function parseHash(): { page: Page; rest: string[] } {
  const [page, ...rest] = location.hash.replace(/^#\/?/, "").split("/").map(decodeURIComponent);
  return { page: PAGES.find((known) => known === page) ?? "chat", rest };
}

export const route = $state(parseHash());
addEventListener("hashchange", () => Object.assign(route, parseHash()));

export const link = (...parts: string[]): string => "#/" + parts.map(encodeURIComponent).join("/");
export const go = (...parts: string[]): void => void (location.hash = link(...parts));

interface Server {
  models: ModelSummary[] | null;
  version: string;
  error: Error | null;
}

export const server = $state<Server>({ models: null, version: "", error: null });

export async function loadModels(): Promise<void> {
  server.error = null;
  try {
    Object.assign(server, await api.models());
  } catch (error) {
    server.error = error as Error;
  }
}

/** Decoders with a chat template; a base model has no notion of turns. */
export const chatModels = (): ModelSummary[] => (server.models ?? []).filter((m) => m.kind === "decoder" && m.chat);

/** The one chosen, or the first there is. */
export const chatModel = (): ModelSummary | undefined =>
  chatModels().find((m) => m.id === prefs.chatModel) ?? chatModels()[0];
