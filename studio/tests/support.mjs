/**
 * A browser against a running server; CUTAWAY_URL says which.
 * Nothing here depends on what a model says, only on there being a decoder, and a lab, to speak with.
 */

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { after, before, test } from "node:test";
import ts from "typescript";
import { launch } from "./browser.mjs";

export const URL_BASE = (process.env.CUTAWAY_URL ?? "http://127.0.0.1:8000").replace(/\/$/, "");
const LONG = 180_000;

export const fromApi = async (path) => (await fetch(`${URL_BASE}/studio/api${path}`)).json();

let browser;
before(async () => (browser = await launch()));
after(() => browser?.close());

/** Short replies that come out the same each time. */
const SAMPLING = { temperature: 0.8, seed: 1, max_tokens: 16 };

/**
 * One test on a page of its own, which must log no error.
 * options: lang, colorScheme, sampling, expected (a pattern of console errors that the test provokes).
 */
export function scene(name, options, body) {
  test(name, { timeout: 3 * LONG }, async () => {
    const context = await browser.newContext({
      viewport: { width: 1280, height: 800 },
      colorScheme: options.colorScheme ?? "light",
    });
    const page = await context.newPage();
    const problems = [];
    page.on("pageerror", (error) => problems.push(error.message));
    page.on("console", (message) => message.type() === "error" && problems.push(message.text()));
    await page.addInitScript(
      (preferences) => {
        localStorage["cutaway.preferences"] ??= JSON.stringify(preferences);
      },
      { lang: options.lang ?? "en", sampling: { ...SAMPLING, ...options.sampling } },
    );
    try {
      await body(page);
      assert.deepEqual(
        problems.filter((problem) => !options.expected?.test(problem)),
        [],
      );
    } finally {
      await context.close();
    }
  });
}

export const open = (page, hash = "") => page.goto(`${URL_BASE}/${hash}`);

/** The words table, read from its source. */
export async function words() {
  const source = await readFile(new URL("../src/i18n.ts", import.meta.url), "utf8");
  const { outputText } = ts.transpileModule(source, { compilerOptions: { module: "esnext", target: "es2022" } });
  return (await import(`data:text/javascript;base64,${Buffer.from(outputText).toString("base64")}`)).WORDS;
}

/** Sends a message and waits for the whole reply. */
export async function say(page, text) {
  await page.locator("#composer").fill(text);
  await page.keyboard.press("Enter");
  await replied(page);
}

/** A short reply may be over before anybody looks: that it begins is waited for a moment only. */
export async function replied(page) {
  await page
    .locator("article[aria-busy=true]")
    .waitFor({ state: "attached", timeout: 1000 })
    .catch(() => {});
  await page.locator("article[aria-busy=true]").waitFor({ state: "detached", timeout: LONG });
  assert.ok((await tokens(page).count()) > 0, "the reply has tokens");
}

/** The tokens of the last reply. */
export const tokens = (page) => page.locator("article[aria-busy]").last().locator("[data-token]");

const AXE = await readFile(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

/** What axe finds wrong with the page, serious and worse. */
export async function accessibilityProblems(page) {
  await page.evaluate(AXE);
  const { violations } = await page.evaluate(() => window.axe.run());
  return violations
    .filter(({ impact }) => impact === "serious" || impact === "critical")
    .map(({ id, nodes }) => `${id}: ${nodes.map((node) => `${node.target} ${node.failureSummary}`).join("; ")}`);
}
