/** One look into a model: what is asked, its progress, what was found. */

import { api, type Views } from "../api";

export class Look<V extends keyof Views> {
  progress = $state.raw<{ done: number; total: number } | null>(null);
  found = $state.raw<Views[V] | null>(null);
  error = $state.raw<Error | null>(null);
  running = $state(false);
  private controller = new AbortController();

  constructor(
    readonly view: V,
    private readonly body: () => object,
  ) {}

  /** Asks anew; what was asked before is given up, its answer stays on screen until the new one is there. */
  start = async (): Promise<void> => {
    this.cancel();
    const controller = (this.controller = new AbortController());
    this.error = this.progress = null;
    this.running = true;
    try {
      for await (const event of api.look(this.view, this.body(), controller.signal)) {
        if (event.type === "progress") this.progress = event;
        if (event.type === "found") this.found = event.found;
      }
    } catch (error) {
      if (!controller.signal.aborted) this.error = error as Error;
    } finally {
      if (this.controller === controller) this.running = false;
    }
  };

  cancel = (): void => this.controller.abort();
}
