import assert from "node:assert/strict";
import { accessibilityProblems, fromApi, open, scene, URL_BASE } from "./support.mjs";

const { models } = await fromApi("/models");
const { id } = models.find((model) => model.kind === "decoder");

/** Several replies at once, long enough to be watched; what they begin with is shared. Stopped by the function. */
function busy() {
  const stop = new AbortController();
  const messages = (n) => [
    { role: "system", content: "Say what you see. ".repeat(40) },
    { role: "user", content: `Tell me about number ${n}.` },
  ];
  const ask = (n) => ({ model: id, messages: messages(n), max_tokens: 2000, ignore_eos: true, stream: true });
  const asked = [1, 2, 3].map((n) =>
    fetch(`${URL_BASE}/v1/chat/completions`, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(ask(n)),
      signal: stop.signal,
    })
      .then((answer) => answer.text())
      .catch(() => null),
  );
  return () => (stop.abort(), Promise.all(asked));
}

scene("a working engine: steps, pages, and who shares them; by keyboard too", {}, async (page) => {
  const stop = busy();
  try {
    await open(page, "#/engine");
    const table = page.getByRole("region", { name: "Sequences", exact: true });
    const rows = table.locator("tbody tr");
    await rows.nth(2).waitFor();
    await rows.locator("td:nth-child(7)").filter({ hasText: /^[1-9]/ }).first().waitFor();
    await page.getByRole("button", { name: "Pause" }).click();
    const shared = await rows.locator("td:nth-child(7)").allInnerTexts();
    assert.ok(shared.some((count) => Number(count) > 0), `pages that are shared: ${shared}`);

    const button = rows.first().getByRole("button");
    await button.press("Enter");
    assert.equal(await button.getAttribute("aria-pressed"), "true");
    const pages = page.getByRole("figure", { name: "Pages" });
    const own = Number(await rows.first().locator("td:nth-child(6)").innerText());
    assert.match(await pages.innerText(), new RegExp(`of the chosen sequence ${own}\\b`));
    await pages.locator("svg[role=group]").press("ArrowRight");
    assert.match(await pages.locator("[aria-live]").innerText(), /^Page 0: /);

    const batch = page.getByRole("figure", { name: "The batch of each step" });
    await batch.locator("svg[role=group]").press("End");
    const last = await batch.locator("[aria-live]").innerText();
    await batch.locator("svg[role=group]").press("ArrowLeft");
    assert.notEqual(await batch.locator("[aria-live]").innerText(), last);
    await batch.getByText("Table", { exact: true }).click();
    const newest = await batch.locator("tbody tr").first().locator("td").first().innerText();
    assert.ok(last.startsWith(`Step ${newest}:`), last);
    await pages.getByText("Table", { exact: true }).click();
    assert.ok((await pages.locator("tbody tr").count()) >= own);
    assert.deepEqual(await accessibilityProblems(page), []);
  } finally {
    await stop();
  }
});

scene("an engine at rest, in Chinese and dark", { lang: "zh", colorScheme: "dark" }, async (page) => {
  await open(page, "#/engine");
  await page.getByText("当前没有序列", { exact: false }).waitFor();
  assert.deepEqual(await accessibilityProblems(page), []);
});
