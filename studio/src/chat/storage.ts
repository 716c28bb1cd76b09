/**
 * Conversations in the browser's localStorage, one key each.
 *
 * A token with ten alternatives is about a kilobyte as plain JSON, so tokens are packed into rows. When the
 * quota is reached the oldest conversation first loses its alternatives, then goes altogether.
 */

import type { Alternative, Cut } from "../api";
import { Conversation, Turn, type ReplyToken } from "./conversation.svelte";

const PREFIX = "cutaway.chat.";
const CUTS: (Cut | null)[] = [null, "top_k", "top_p", "min_p"];

type PackedAlternative = [number, string, string | 0, number, number, number];
type PackedToken = [number, string, string | 0, number, number, number, number, 0 | 1, PackedAlternative[]];

interface StoredTurn extends Pick<Turn, "id" | "role" | "parent" | "model" | "written" | "finish" | "timing"> {
  tokens: PackedToken[];
  prompt: [number, string][];
}

interface Stored extends Pick<Conversation, "id" | "system" | "updated" | "chosen"> {
  turns: StoredTurn[];
}

const short = (x: number): number => Number(x.toPrecision(4));
const shown = (token: { text: string; display?: string }) => (token.display === token.text ? 0 : (token.display ?? 0));

const packAlternative = (a: Alternative): PackedAlternative => [
  a.id,
  a.text,
  shown(a),
  short(a.probability),
  short(a.sampled),
  CUTS.indexOf(a.cut),
];

const packToken = (t: ReplyToken): PackedToken => [
  t.id,
  t.text,
  shown(t),
  short(t.probability),
  short(t.entropy),
  t.rank,
  t.candidates,
  t.forced ? 1 : 0,
  t.alternatives.map(packAlternative),
];

const unpackAlternative = ([id, text, display, probability, sampled, cut]: PackedAlternative): Alternative => ({
  id,
  text,
  display: display || text,
  probability,
  sampled,
  cut: CUTS[cut] ?? null,
});

const unpackToken = ([
  id,
  text,
  display,
  probability,
  entropy,
  rank,
  candidates,
  forced,
  rest,
]: PackedToken): ReplyToken => ({
  id,
  text,
  display: display || text,
  probability,
  entropy,
  rank,
  candidates,
  forced: forced === 1,
  alternatives: rest.map(unpackAlternative),
});

function pack(conversation: Conversation): Stored {
  const { id, system, updated, chosen, turns } = conversation;
  return {
    id,
    system,
    updated,
    chosen,
    turns: turns.map(({ id, role, parent, model, written, finish, timing, tokens, prompt }) => ({
      id,
      role,
      parent,
      model,
      written,
      finish,
      timing,
      tokens: tokens.map(packToken),
      prompt: prompt.map((token) => [token.id, token.display ?? token.text]),
    })),
  };
}

function unpack(stored: Stored): Conversation {
  const conversation = new Conversation(stored.id);
  conversation.turns = stored.turns.map(({ id, role, parent, tokens, prompt, finish, ...rest }) =>
    Object.assign(new Turn(role, parent, id), rest, {
      finish: finish ?? "stopped",
      tokens: tokens.map(unpackToken),
      prompt: prompt.map(([id, text]) => ({ id, text })),
    }),
  );
  const { system, updated, chosen } = stored;
  return Object.assign(conversation, { system, updated, chosen });
}

const keys = (): string[] => Object.keys(localStorage).filter((key) => key.startsWith(PREFIX));
const read = (key: string): Stored => JSON.parse(localStorage.getItem(key)!) as Stored;

/** Every stored conversation, the latest first. */
export const loadConversations = (): Conversation[] =>
  keys()
    .map((key) => unpack(read(key)))
    .sort((a, b) => b.updated - a.updated);

export const forgetConversation = (id: string): void => localStorage.removeItem(PREFIX + id);

export function saveConversation(conversation: Conversation): void {
  const text = JSON.stringify(pack(conversation));
  for (;;) {
    try {
      localStorage.setItem(PREFIX + conversation.id, text);
      return;
    } catch {
      if (!makeRoom(conversation.id)) return;
    }
  }
}

/** Shrinks or removes the oldest conversation but the one being saved; false if there is none left. */
function makeRoom(saving: string): boolean {
  const others = keys()
    .map(read)
    .filter((other) => other.id !== saving)
    .sort((a, b) => a.updated - b.updated);
  const heavy = others.find((other) => other.turns.some((turn) => turn.tokens.some((token) => token[8].length)));
  if (heavy) {
    for (const turn of heavy.turns)
      turn.tokens = turn.tokens.map((token) => [...token.slice(0, 8), []] as unknown as PackedToken);
    localStorage.setItem(PREFIX + heavy.id, JSON.stringify(heavy));
  } else if (others[0]) {
    forgetConversation(others[0].id);
  }
  return others.length > 0;
}
