/** The chat page's state and its verbs: send, regenerate, edit, branch, stop. */

import { api, type Alternative, type GenerateEvent } from "../api";
import { chatModel, prefs } from "../state.svelte";
import { Conversation, Turn, type ReplyToken } from "./conversation.svelte";
import { forgetConversation, loadConversations, saveConversation } from "./storage";

export interface Place {
  turn: Turn;
  index: number;
}

class Chat {
  conversations = $state.raw<Conversation[]>(loadConversations());
  current = $state.raw<Conversation>(this.conversations[0] ?? new Conversation());
  running = $state.raw<{ turn: Turn; controller: AbortController } | null>(null);
  /** The token that was clicked or reached by keyboard, and the one under the pointer. */
  selected = $state.raw<Place | null>(null);
  hovered = $state.raw<Place | null>(null);
  inspected = $derived(this.hovered ?? this.selected);

  open(conversation: Conversation): void {
    this.current = conversation;
    this.selected = this.hovered = null;
  }

  /** A conversation enters the list with its first message, so a blank one costs nothing. */
  begin(): void {
    this.open(new Conversation());
  }

  remove(conversation: Conversation): void {
    if (this.running && conversation.turns.includes(this.running.turn)) this.stop();
    forgetConversation(conversation.id);
    this.conversations = this.conversations.filter((other) => other !== conversation);
    if (conversation === this.current) this.open(this.conversations[0] ?? new Conversation());
  }

  save(conversation = this.current): void {
    if (conversation.turns.length === 0) return;
    const others = this.conversations.filter((other) => other !== conversation);
    this.conversations = [conversation, ...others];
    saveConversation(conversation);
  }

  send(text: string, parent: Turn | null = this.current.path.at(-1) ?? null): Promise<void> {
    const turn = this.current.add(new Turn("user", parent?.id ?? null));
    turn.written = text;
    this.save();
    return this.reply(turn);
  }

  /** Another version of a user's message, beside the first. */
  edit(turn: Turn, text: string): Promise<void> {
    return this.send(text, this.current.parentOf(turn) ?? null);
  }

  regenerate(turn: Turn): Promise<void> {
    return this.reply(this.current.parentOf(turn)!);
  }

  /** Cuts a reply before token `index`, puts `alternative` there and lets the model go on. */
  branch({ turn, index }: Place, alternative: Alternative): Promise<void> {
    const token = turn.tokens[index]!;
    const rank = token.alternatives.filter((other) => other.probability > alternative.probability).length;
    const { id, text, display, probability } = alternative;
    const kept = [...turn.tokens.slice(0, index), { ...token, id, text, display, probability, rank, forced: true }];
    return this.reply(this.current.parentOf(turn)!, kept, turn.model);
  }

  stop(): void {
    this.running?.controller.abort();
  }

  private async reply(parent: Turn, kept: ReplyToken[] = [], model = chatModel()?.id ?? ""): Promise<void> {
    this.stop();
    const conversation = this.current;
    const messages = conversation.messages(parent);
    const turn = conversation.add(new Turn("assistant", parent.id));
    Object.assign(turn, { model, tokens: kept });
    this.hovered = null;
    this.selected = kept.length ? { turn, index: kept.length - 1 } : null;
    const run = { turn, controller: new AbortController() };
    this.running = run;
    const request = { ...prefs.sampling, model, messages, continue_tokens: kept.map((token) => token.id) };
    try {
      for await (const event of api.generate(request, run.controller.signal)) take(turn, event);
      turn.finish ??= "stopped";
    } catch (error) {
      turn.finish = run.controller.signal.aborted ? "stopped" : "failed";
      if (turn.finish === "failed") turn.error = error as Error;
    } finally {
      if (this.running === run) this.running = null;
      if (this.conversations.includes(conversation)) this.save(conversation);
    }
  }
}

function take(turn: Turn, event: GenerateEvent): void {
  if (event.type === "prompt") turn.prompt = event.tokens;
  else if (event.type === "token") turn.tokens = [...turn.tokens, event];
  else Object.assign(turn, { finish: event.finish_reason, timing: event.timing });
}

export const chat = new Chat();
