import assert from "node:assert/strict";
import { fromApi, open, scene } from "./support.mjs";

const { models } = await fromApi("/models");
const { id } = models.find((model) => model.kind === "decoder");
const model = await fromApi(`/model/${id}`);
const grouped = (n) => n.toLocaleString("en-US");
const flat = (module) => [module, ...module.children.flatMap(flat)];
const blocks = flat(model.tree).filter((module) => module.kind === "Block");
const attention = flat(blocks[1]).find((module) => module.kind === "Attention");

const panel = (page) => page.getByRole("region", { name: "Module" });
const part = (page, which) => page.locator(`svg [data-module="${which}"]`);

scene("the drawing opens a block, its parts, and their code", {}, async (page) => {
  await open(page, `#/model/${id}`);
  await part(page, blocks[1].id).locator("path").first().click();
  for (const block of blocks) assert.equal(await part(page, block.id).count(), 1);
  await part(page, attention.id).press("Enter");
  await panel(page)
    .getByRole("heading", { name: /attention/ })
    .waitFor();
  assert.ok((await panel(page).innerText()).includes(grouped(attention.parameters)));
  assert.ok((await panel(page).innerText()).includes(attention.output));

  await panel(page).getByRole("button", { name: "Code" }).click();
  const code = page.getByRole("dialog");
  await code.locator(".line").first().waitFor({ state: "attached" });
  const marked = await code.locator(".line.here").count();
  assert.equal(marked, attention.code.end - attention.code.line + 1);
  assert.match(await code.locator(".line.here").first().innerText(), /class \w*Attention/);
  await page.keyboard.press("Escape");
  assert.equal(await code.count(), 0);
});

scene("stepping through the layers keeps the place within", {}, async (page) => {
  await open(page, `#/model/${id}/architecture/${attention.id}`);
  await page.getByRole("button", { name: "Next layer" }).click();
  await page.waitForURL((url) => url.hash.endsWith(attention.id.replace(/\d+/, "2")));
});

scene("the drawing reads as a table", {}, async (page) => {
  await open(page, `#/model/${id}`);
  await page.getByText("Table", { exact: true }).click();
  await page.getByRole("button", { name: new RegExp(`× ${blocks.length} show all`) }).click();
  const rows = await page.locator("tbody tr").allInnerTexts();
  assert.ok(rows.length >= blocks.length + 2);
  assert.ok(rows.some((row) => row.includes(grouped(blocks[0].parameters))));
});

scene("the budget adds up to the model", {}, async (page) => {
  await open(page, `#/model/${id}/budget`);
  assert.match(await page.locator("tr.total").innerText(), new RegExp(grouped(model.tree.parameters)));
  const areas = await page
    .locator(".map .box")
    .evaluateAll((boxes) => boxes.map((box) => box.offsetWidth * box.offsetHeight));
  const map = await page.locator(".map").boundingBox();
  const covered = areas.reduce((a, b) => a + b, 0) / (map.width * map.height);
  assert.ok(Math.abs(covered - 1) < 0.03, `boxes cover ${covered} of the map`);
});

scene("the memory calculator shows what the server counts", {}, async (page) => {
  await open(page, `#/model/${id}/memory`);
  const total = page.locator("p.total");
  await total.waitFor();
  const before = await total.innerText();
  await page.getByText("bfloat16", { exact: true }).click();
  await page.waitForFunction((old) => document.querySelector("p.total").innerText !== old, before);
  const context = Number((await page.locator("output").first().innerText()).replaceAll(",", ""));
  const cost = await fromApi(`/model/${id}/cost?context=${context}&batch=1&dtype=bfloat16`);
  const mebibytes = cost.rows.find((row) => row.part === "total").bytes / 2 ** 20;
  assert.ok(
    (await total.innerText()).includes(
      mebibytes >= 1024 ? (mebibytes / 1024).toFixed(2) : mebibytes.toFixed(mebibytes >= 100 ? 0 : 1),
    ),
  );
});
