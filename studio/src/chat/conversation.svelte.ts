/**
 * A conversation is a tree of turns; what is on screen is one path through it.
 *
 *     user ─┬─ reply            regenerating a reply, branching at one of its tokens and editing a
 *           └─ reply ── user    message all do the same: they add a sibling and choose it
 */

import type { Message, TextToken, Timing, Token } from "../api";

/** forced: put there by the reader, not drawn by the sampler. */
export interface ReplyToken extends Token {
  forced?: boolean;
}

/** crypto.randomUUID is missing on plain http from another machine. */
const newId = (): string => Date.now().toString(36) + Math.random().toString(36).slice(2, 8);

/** What the server says, or "stopped" by the reader, or "failed". */
export type Finish = string;

export class Turn {
  readonly id: string;
  readonly role: "user" | "assistant";
  readonly parent: string | null;
  model = "";
  /** What the user wrote; a reply's words are its tokens. */
  written = "";
  tokens = $state.raw<ReplyToken[]>([]);
  prompt = $state.raw<TextToken[]>([]);
  finish = $state<Finish | null>(null);
  timing = $state.raw<Timing | null>(null);
  error = $state.raw<Error | null>(null);

  constructor(role: "user" | "assistant", parent: string | null, id = newId()) {
    this.id = id;
    this.role = role;
    this.parent = parent;
  }

  get text(): string {
    return this.role === "user" ? this.written : this.tokens.map((token) => token.text).join("");
  }
}

const ROOT = "root";

export class Conversation {
  readonly id: string;
  system = $state("");
  updated = $state(Date.now());
  turns = $state.raw<Turn[]>([]);
  /** For each turn (or the root) the child that is shown. */
  chosen = $state<Record<string, string>>({});

  readonly path: Turn[] = $derived.by(() => {
    const path: Turn[] = [];
    for (let at = this.child(null); at; at = this.child(at.id)) path.push(at);
    return path;
  });

  constructor(id = newId()) {
    this.id = id;
  }

  get title(): string {
    return this.path[0]?.written.trim().slice(0, 80) ?? "";
  }

  private child(parent: string | null): Turn | undefined {
    const id = this.chosen[parent ?? ROOT];
    return this.turns.find((turn) => turn.id === id);
  }

  /** All versions of one turn, oldest first. */
  siblings(turn: Turn): Turn[] {
    return this.turns.filter((other) => other.parent === turn.parent);
  }

  choose(turn: Turn): void {
    this.chosen[turn.parent ?? ROOT] = turn.id;
  }

  add(turn: Turn): Turn {
    this.turns = [...this.turns, turn];
    this.choose(turn);
    this.updated = Date.now();
    return turn;
  }

  parentOf(turn: Turn): Turn | undefined {
    return this.turns.find((other) => other.id === turn.parent);
  }

  /** What the model is asked: the system prompt and the path down to `last`. */
  messages(last: Turn): Message[] {
    const path = this.path.slice(0, this.path.indexOf(last) + 1);
    const system: Message[] = this.system.trim() ? [{ role: "system", content: this.system }] : [];
    return [...system, ...path.map((turn) => ({ role: turn.role, content: turn.text }))];
  }
}
