/**
 * Finds a headless Chromium: CUTAWAY_CHROMIUM, else the system's, else one that npm brings, for which nobody has to
 * be root: `npm install --no-save @sparticuz/chromium@147` (MIT; 67 MB, 200 MB unpacked in the temporary folder).
 */

import { existsSync } from "node:fs";
import { chromium } from "playwright-core";

const SYSTEM = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"];
const QUIET = [
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];

async function packaged() {
  process.env.AWS_EXECUTION_ENV ??= "AWS_Lambda_nodejs20.x"; // there it unpacks the shared libraries as well
  const { default: headless } = await import("@sparticuz/chromium");
  return headless.executablePath();
}

export async function launch() {
  const executablePath = process.env.CUTAWAY_CHROMIUM || SYSTEM.find(existsSync) || (await packaged());
  return chromium.launch({ executablePath, args: QUIET });
}
