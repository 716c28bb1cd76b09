/** Looks at the engine again and again, as long as the page is open and nobody pauses it. */

import { api, type EngineLook, type EngineStep } from "../api";

const EVERY_MS = 400;
const KEPT = 256;

export class Watch {
  model = $state("");
  paused = $state(false);
  look = $state.raw<EngineLook | null>(null);
  steps = $state.raw<EngineStep[]>([]);
  error = $state.raw<Error | null>(null);

  private running = false;
  private asked = "";

  /** Until the function that it returns is called. */
  start(): () => void {
    this.running = true;
    void this.follow();
    return () => (this.running = false);
  }

  private async follow(): Promise<void> {
    while (this.running) {
      if (!this.paused && !document.hidden) await this.once();
      await new Promise((done) => setTimeout(done, EVERY_MS));
    }
  }

  /** Another model, or a server that began anew: what is known of steps is of no use. */
  async once(): Promise<void> {
    const since = this.asked === this.model ? (this.steps.at(-1)?.number ?? -1) + 1 : 0;
    try {
      const look = await api.engine(this.model, since);
      const goesOn = since > 0 && look.counted.steps >= since;
      this.steps = [...(goesOn ? this.steps : []), ...look.steps].slice(-KEPT);
      this.look = look;
      this.asked = this.model;
      this.error = null;
    } catch (error) {
      this.error = error as Error;
    }
  }
}
