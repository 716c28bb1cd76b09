import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { fromApi, open, scene } from "./support.mjs";

const { labs } = await fromApi("/labs");
const lab = labs.toSorted((a, b) => a.seconds.quick - b.seconds.quick)[0];
const slow = labs.toSorted((a, b) => b.seconds.full - a.seconds.full)[0];

scene("the list names every lab with its question", {}, async (page) => {
  await open(page, "#/labs");
  for (const { title, question } of labs) {
    await page.getByRole("heading", { name: title.en, exact: true }).waitFor();
    await page.getByText(question.en, { exact: true }).waitFor();
  }
});

scene("a quick run ends in a verdict, a table and files", {}, async (page) => {
  await open(page, `#/labs/${lab.id}`);
  // A quick lab may end before anything that is only there while it runs is seen: its last event is waited for.
  const run = page.waitForResponse((response) => response.request().method() === "POST", { timeout: 180_000 });
  await page.getByRole("button", { name: "Run" }).click();
  await (await run).finished();
  await page.getByRole("button", { name: "Run" }).waitFor();
  const evidence = page.getByRole("region", { name: "Evidence" });
  assert.match(await evidence.innerText(), /Holds|Does not hold/);
  const rows = await evidence.locator("tbody tr").count();
  assert.ok(rows > 0);

  const { latest } = (await fromApi("/labs")).labs.find(({ id }) => id === lab.id);
  assert.equal(latest.table.rows.length, rows);
  assert.ok((await evidence.innerText()).includes(latest.verdict.en));
  if (latest.plot) {
    await evidence.locator("figure svg[role=group]").press("ArrowRight");
    await evidence.locator("figure .tip").waitFor();
  }

  const saved = async (name) => {
    const [file] = await Promise.all([page.waitForEvent("download"), evidence.getByRole("button", { name }).click()]);
    return readFile(await file.path(), "utf8");
  };
  assert.equal(JSON.parse(await saved("JSON")).lab, lab.id);
  assert.equal((await saved("CSV")).trimEnd().split("\n").length, rows + 1);
});

scene("a run can be cancelled", {}, async (page) => {
  await open(page, `#/labs/${slow.id}`);
  await page.locator("label", { hasText: "Full · " }).click();
  await page.getByRole("button", { name: "Run" }).click();
  await page.getByRole("button", { name: "Cancel" }).click();
  await page.getByRole("button", { name: "Run" }).waitFor();
});

scene("knobs are the lab's own", {}, async (page) => {
  await open(page, `#/labs/${lab.id}`);
  for (const knob of lab.knobs) await page.getByLabel(knob.name, { exact: true }).waitFor();
  await page.locator("label", { hasText: "Full · " }).click();
  for (const knob of lab.knobs.filter(({ type }) => type === "int" || type === "str")) {
    assert.equal(await page.getByLabel(knob.name, { exact: true }).inputValue(), String(knob.default));
  }
});
