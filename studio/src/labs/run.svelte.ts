/** One lab run: its progress, its evidence, its end. */

import { api, type Evidence, type KnobValue, type Profile } from "../api";

export class Run {
  progress = $state.raw<{ done: number; total: number; note?: string } | null>(null);
  evidence = $state.raw<Evidence | null>(null);
  error = $state.raw<Error | null>(null);
  running = $state(false);
  private controller = new AbortController();

  async start(lab: string, knobs: Record<string, KnobValue>, profile: Profile): Promise<void> {
    this.controller = new AbortController();
    this.error = this.progress = null;
    this.running = true;
    try {
      for await (const event of api.runLab(lab, knobs, profile, this.controller.signal)) {
        if (event.type === "progress") this.progress = event;
        if (event.type === "evidence") this.evidence = event.evidence;
      }
    } catch (error) {
      if (!this.controller.signal.aborted) this.error = error as Error;
    } finally {
      this.running = false;
    }
  }

  cancel(): void {
    this.controller.abort();
  }
}
