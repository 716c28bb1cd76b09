/** The studio's HTTP contract, typed. One function per route; streams are async generators. */

export type Words = { en: string; zh: string };

export interface ModelSummary {
  id: string;
  kind: "decoder" | "encoder";
  family: string;
  context: number;
  parameters: number;
  dtype: string;
  chat: boolean;
}

export interface Fact {
  key: string;
  value: number | string;
  unit?: string;
  formula?: string;
}

export interface Tensor {
  name: string;
  shape: number[];
  dtype: string;
  parameters: number;
  bytes: number;
  stored: string;
}

export interface CodePlace {
  path: string;
  line: number;
  end?: number;
}

export type Detail = Record<string, number | string | boolean | null>;

/** A module of the model. Parameters, bytes and FLOPs include the children. */
export interface Module {
  id: string;
  name: string;
  kind: string;
  tensors: Tensor[];
  parameters: number;
  bytes: number;
  flops_per_token: number;
  share: number;
  detail: Detail;
  input: string;
  output: string;
  code?: CodePlace | null;
  children: Module[];
}

export interface Model {
  id: string;
  family: string;
  kind: "decoder" | "encoder";
  dtype: string;
  source: string;
  license?: string | null;
  facts: Fact[];
  tree: Module;
}

export interface Cost {
  rows: { part: string; bytes: number; formula?: string }[];
  flops_per_token: number;
  kv_bytes_per_token: number;
}

export interface Code {
  path: string;
  text: string;
  lines: number;
}

export interface Message {
  role: "system" | "user" | "assistant";
  content: string;
}

export interface Sampling {
  temperature: number;
  top_k: number;
  top_p: number;
  min_p: number;
  repetition_penalty: number;
  presence_penalty: number;
  frequency_penalty: number;
  seed: number | null;
  max_tokens: number;
}

export interface TextToken {
  id: number;
  text: string;
  display?: string;
}

export type Cut = "top_k" | "top_p" | "min_p";

/** probability: the model's own; sampled: after the settings, 0 if cut. */
export interface Alternative extends TextToken {
  probability: number;
  sampled: number;
  cut: Cut | null;
}

/** entropy in nats; rank: 0 for the most probable; candidates: how many tokens the settings left to choose from. */
export interface Token extends TextToken {
  probability: number;
  entropy: number;
  rank: number;
  candidates: number;
  alternatives: Alternative[];
}

export interface Timing {
  prefill_s: number;
  decode_s: number;
  tokens_per_s: number;
}

export interface Usage {
  prompt_tokens: number;
  completion_tokens: number;
}

type Failure = { type: "error"; message?: string; error?: { message: string } };

export type GenerateEvent =
  | { type: "prompt"; tokens: TextToken[]; count: number }
  | ({ type: "token"; index: number } & Token)
  | { type: "done"; finish_reason: string; usage: Usage; timing: Timing; text: string };

export interface Knob {
  name: string;
  type: "int" | "float" | "str" | "bool" | "choice";
  default: KnobValue;
  quick: KnobValue;
  help: Words;
  choices?: (string | number)[];
  min?: number;
  max?: number;
}

export type KnobValue = number | string | boolean | null;

export interface Plot {
  kind: "line" | "bar" | "scatter";
  x: { label: string; log: boolean };
  y: { label: string; log: boolean };
  series: { name: string; x: (number | string)[]; y: (number | null)[] }[];
}

export type Cell = number | string | boolean | null;

export interface Evidence {
  lab: string;
  title: Words;
  verdict: Words;
  holds: boolean;
  checks?: { claim: Words; holds: boolean }[];
  table: { columns: { name: string; unit?: string }[]; rows: Cell[][] };
  plot: Plot | null;
  knobs: Record<string, KnobValue>;
  profile: Profile;
  seconds: number;
  machine: { cpu: string; cores: number; memory_gb: number; gpu: string | null };
  versions: Record<string, string>;
  commit: string | null;
  seed: number | null;
  created: string;
}

export type Profile = "quick" | "full";

export interface Lab {
  id: string;
  title: Words;
  question: Words;
  knobs: Knob[];
  seconds: { quick: number; full: number };
  code?: CodePlace | null;
  latest: Evidence | null;
}

export type LabEvent =
  | { type: "progress"; done: number; total: number; note?: string }
  | { type: "evidence"; evidence: Evidence }
  | { type: "done" };

export interface Guess {
  id: number;
  token: string;
  probability: number;
}

/** weights: [query][key]; reach: [layer][head], over how many tokens a head spreads. */
export interface AttentionMap {
  tokens: string[];
  layer: number;
  head: number | null;
  weights: number[][];
  reach: number[][];
}

/** rollout: [output][input]; flow: to the output at `position`, null for long prompts. */
export interface Influence {
  tokens: string[];
  position: number;
  rollout: number[][];
  flow: number[] | null;
}

/** views: [position][blocks]; probability and rank are those of the final choice. */
export interface Lens {
  tokens: string[];
  final: Guess[];
  views: { blocks: number; best: Guess[]; probability: number; rank: number; entropy: number }[][];
}

export type AblatedPart = "heads" | "neurons" | "attention" | "ffn";

export interface Effect {
  part: AblatedPart;
  layer: number;
  index: number | null;
  loss: number;
  change: number;
  kl: number;
  best: Guess[];
}

export interface Ablation {
  tokens: string[];
  how: string;
  loss: number;
  best: Guess[];
  effects: Effect[];
}

/** scores: [layer][head]; losses: of the first half of the text and of its repetition. */
export interface Induction {
  scores: number[][];
  losses: [number, number];
}

/** effects: part -> [layer][position]; clean, corrupt: difference of the answers' logits in either run. */
export interface Patching {
  clean_tokens: string[];
  corrupt_tokens: string[];
  answers: [string, string];
  clean: number;
  corrupt: number;
  effects: Record<string, number[][]>;
}

export interface Edit {
  layer: number;
  matrix: string;
  losses: number[];
  changed: number;
  size: number;
  length: number;
  asked: {
    kind: "fact" | "paraphrase" | "neighbor";
    prompt: string;
    before: number;
    after: number;
    kl: number;
    best_before: Guess[];
    best_after: Guess[];
  }[];
}

export interface Neighbor {
  id: number;
  token: string;
  cosine: number;
}

export interface Analogy {
  a: string;
  b: string;
  c: string;
  nearest: Neighbor[];
  with_question: Neighbor[];
}

export interface Plane {
  points: { token: string; x: number; y: number }[];
  explained: [number, number];
}

/** What each view of a model's inside finds. */
export interface Views {
  attention: AttentionMap;
  rollout: Influence;
  lens: Lens;
  ablation: Ablation;
  induction: Induction;
  patching: Patching;
  edit: Edit;
  neighbors: { word: string; neighbors: Neighbor[] };
  analogy: Analogy;
  plane: Plane;
}

export type ViewEvent<T> =
  | { type: "progress"; done: number; total: number; note?: string }
  | { type: "found"; found: T }
  | { type: "done" };

export type Purpose = "serving" | "training";

export interface BudgetRequest {
  model: string;
  published: boolean;
  purpose: Purpose;
  chip: string;
  context: number;
  batch: number;
  dtype: string;
  tokens: number;
}

export interface Figure {
  name: string;
  value: number;
  unit: string;
  formula: string;
  numbers: string;
}

export interface Budget {
  request: BudgetRequest;
  sections: { name: string; figures: Figure[] }[];
}

export interface Chip {
  name: string;
  dtypes: string[];
  flops: Record<string, number>;
  memory: number;
  bandwidth: number;
  source: string;
}

export interface Shapes {
  models: { name: string; parameters: number; source: string }[];
  chips: Chip[];
}

/** status 0: the server could not be reached at all. */
export class ApiError extends Error {
  constructor(
    message: string,
    readonly status: number,
  ) {
    super(message);
  }
}

const BASE = "/studio/api";

async function open(path: string, body?: unknown, signal?: AbortSignal): Promise<Response> {
  const init: RequestInit =
    body === undefined
      ? { signal }
      : { signal, method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) };
  const response = await fetch(BASE + path, init).catch((error: Error) => {
    if (error.name === "AbortError") throw error;
    throw new ApiError(error.message, 0);
  });
  if (!response.ok) throw new ApiError(await reason(response), response.status);
  return response;
}

async function reason(response: Response): Promise<string> {
  const answer = await response.json().catch(() => null);
  return answer?.error?.message ?? `${response.status} ${response.statusText}`;
}

const get = async <T>(path: string): Promise<T> => (await open(path)).json();

/** The events of one server-sent stream; aborting `signal` closes the connection, which stops the work. */
async function* stream<T>(path: string, body: unknown, signal: AbortSignal): AsyncGenerator<T> {
  const response = await open(path, body, signal);
  const reader = response.body!.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split(/\r?\n\r?\n/);
    rest = blocks.pop()!;
    for (const block of blocks) yield* parse<T>(block);
  }
}

function* parse<T>(block: string): Generator<T> {
  for (const line of block.split("\n")) {
    if (!line.startsWith("data:")) continue;
    const event = JSON.parse(line.slice(5)) as T | Failure;
    const failed = event as Failure;
    if (failed.type === "error") throw new ApiError(failed.error?.message ?? failed.message ?? "", 500);
    yield event as T;
  }
}

/** What a sequence did in a step: whose, from which position, tokens, of these guesses, of these right. */
export type EngineSpan = [id: number, start: number, count: number, drafts: number, accepted: number];

export interface EngineStep {
  number: number;
  ago: number;
  runner_s: number;
  whole_s: number;
  spans: EngineSpan[];
  replied: number;
  waiting: number;
  free: number;
  cached: number;
  held: number;
}

export interface EngineSequence {
  id: number;
  state: "running" | "waiting";
  prompt: number;
  reply: number;
  computed: number;
  cached: number;
  limit: number;
  priority: number;
  preempted: number;
  pages: number[];
}

export interface EngineLook {
  model: string;
  models: string[];
  places: number;
  budget: number;
  running: number;
  waiting: number;
  steps: EngineStep[];
  sequences: EngineSequence[];
  /** holders: of each page; 0 free, -1 cached. bytes: of one. */
  pages: { count: number; free: number; cached: number; held: number; size: number; bytes: number; holders: number[] };
  /** Since the server began; drafted and accepted by place in the draft. */
  counted: {
    steps: number;
    tokens: number;
    replied: number;
    lookups: number;
    hits: number;
    evictions: number;
    preemptions: number;
    drafted: number[];
    accepted: number[];
  };
  rates: {
    busy: number;
    steps_per_s: number;
    tokens_per_s: number;
    replied_per_s: number;
    weights_per_s: number;
    overhead: number;
    acceptance: number | null;
  };
}

export interface GenerateRequest extends Sampling {
  model: string;
  messages: Message[];
  continue_tokens: number[];
}

export const api = {
  models: () => get<{ models: ModelSummary[]; version: string }>("/models"),
  model: (id: string) => get<Model>(`/model/${encodeURIComponent(id)}`),
  cost: (id: string, context: number, batch: number, dtype: string) =>
    get<Cost>(`/model/${encodeURIComponent(id)}/cost?context=${context}&batch=${batch}&dtype=${dtype}`),
  code: (path: string) => get<Code>(`/code?path=${encodeURIComponent(path)}`),
  labs: () => get<{ labs: Lab[] }>("/labs"),
  tokenize: async (model: string, text: string, signal: AbortSignal): Promise<{ tokens: TextToken[] }> =>
    (await open("/tokenize", { model, text }, signal)).json(),
  generate: (request: GenerateRequest, signal: AbortSignal) => stream<GenerateEvent>("/generate", request, signal),
  runLab: (id: string, knobs: Record<string, KnobValue>, profile: Profile, signal: AbortSignal) =>
    stream<LabEvent>(`/labs/${encodeURIComponent(id)}/run`, { knobs, profile }, signal),
  look: <V extends keyof Views>(view: V, body: object, signal: AbortSignal) =>
    stream<ViewEvent<Views[V]>>(`/inside/${view}`, body, signal),
  shapes: () => get<Shapes>("/budget"),
  engine: (model: string, since: number) =>
    get<EngineLook>(`/engine?since=${since}${model && `&model=${encodeURIComponent(model)}`}`),
  budget: async (request: BudgetRequest, signal: AbortSignal): Promise<Budget> =>
    (await open("/budget", request, signal)).json(),
};
