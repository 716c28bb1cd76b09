import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { accessibilityProblems, fromApi, open, scene } from "./support.mjs";

const { models } = await fromApi("/models");
const { id } = models.find((model) => model.kind === "decoder");
const encoder = models.find((model) => model.kind === "encoder");
const { facts } = await fromApi(`/model/${id}`);
const layers = facts.find(({ key }) => key === "layers").value;

const map = (page, n = 0) => page.locator("figure svg[role=group]").nth(n);
const tip = (page) => page.locator("figure .tip");

/** The whole answer of the view that `act` asks for: what a stream ends with, however quick it was. */
async function asked(page, view, act) {
  const ours = (response) => response.url().endsWith(`/inside/${view}`);
  const answering = page.waitForResponse(ours, { timeout: 120_000 });
  await act();
  const answer = await answering;
  await answer.finished();
  await page.locator(".result[aria-busy=false]").waitFor();
  if (!answer.ok()) return null;
  const items = (await answer.text()).trim().split("\n\n");
  return items.map((item) => JSON.parse(item.slice(6))).find(({ type }) => type === "found")?.found;
}

const run = (page) => page.getByRole("button", { name: "Run", exact: true }).click();

async function saved(page, name) {
  const button = page.getByRole("button", { name, exact: true }).first();
  const [file] = await Promise.all([page.waitForEvent("download"), button.click()]);
  return readFile(await file.path(), "utf8");
}

scene("attention: a map of tokens, a head by the keyboard, a table and files", {}, async (page) => {
  const mean = await asked(page, "attention", () => open(page, `#/model/${id}/inside`));
  const tokens = mean.tokens.length;
  await map(page).press("ArrowRight"); // the first key finds the first cell
  await map(page).press("ArrowDown");
  await tip(page).waitFor();
  assert.ok((await tip(page).innerText()).includes(`1 ${mean.tokens[1]}`));

  await map(page, 1).press("ArrowDown");
  await map(page, 1).press("ArrowRight");
  await map(page, 1).press("ArrowDown");
  const head = await asked(page, "attention", () => map(page, 1).press("Enter"));
  assert.deepEqual([head.layer, head.head], [1, 1]);
  assert.equal(await page.getByLabel("Layer", { exact: true }).inputValue(), "1");
  await page.getByRole("heading", { name: "Attention weights of layer 1, head 1" }).waitFor();

  const rows = (await saved(page, "CSV")).trimEnd().split("\n");
  assert.equal(rows.length, tokens + 1);
  assert.deepEqual(JSON.parse(await saved(page, "JSON")), head);
  await page.getByText("Table", { exact: true }).first().click();
  assert.equal(await page.locator("figure").first().locator("tbody td").count(), tokens * tokens);
  assert.equal(await page.locator("figure").first().locator("thead th").count(), tokens + 1);
});

scene("the lens writes the best token into every cell; axe agrees", { colorScheme: "dark" }, async (page) => {
  const lens = await asked(page, "lens", () => open(page, `#/model/${id}/inside/lens`));
  assert.equal(await page.locator("figure text.word").count(), (layers + 1) * lens.tokens.length);
  const last = await page.locator("figure text.word").last().textContent();
  assert.equal(last, lens.final.at(-1).token.slice(0, last.length));
  await map(page).press("PageDown");
  await map(page).press("PageDown");
  await map(page).press("End");
  assert.ok((await tip(page).innerText()).includes(lens.final.at(-1).token));
  assert.deepEqual(await accessibilityProblems(page), [], "map");
  await page.getByText("Table", { exact: true }).click();
  assert.deepEqual(await accessibilityProblems(page), [], "table");
});

scene("ablation: a long look is cancelled; heads of one layer, with what it does to the loss", {}, async (page) => {
  await open(page, `#/model/${id}/inside/ablation`);
  await run(page);
  await page.getByRole("button", { name: "Cancel" }).click();
  await page.getByRole("button", { name: "Run", exact: true }).waitFor();
  await page.getByText("Not asked yet.").waitFor();
  await page.getByLabel("Layer", { exact: true }).selectOption(String(layers - 1));
  const found = await asked(page, "ablation", () => run(page));
  assert.ok(found.effects.length > 1 && found.effects.every(({ layer }) => layer === layers - 1));
  await page.getByText("Table", { exact: true }).click();
  assert.equal(await page.locator("figure tbody td").count(), found.effects.length);
  await page.getByText("The whole model: loss").waitFor();
});

scene("induction: a score for every head", {}, async (page) => {
  await open(page, `#/model/${id}/inside/induction`);
  await page.getByLabel("Random tokens before they repeat").fill("8");
  const found = await asked(page, "induction", () => run(page));
  assert.equal(found.scores.length, layers);
  await map(page).waitFor();
});

scene("what the library refuses is said as it says it", { expected: /400/ }, async (page) => {
  await open(page, `#/model/${id}/inside/patching`);
  await page.getByLabel("Corrupt prompt, of as many tokens").fill("Paris");
  await asked(page, "patching", () => run(page));
  await page.getByRole("alert").getByText("have different numbers of tokens").waitFor();
});

scene("rollout: an output is picked, and its flow is shown", {}, async (page) => {
  const first = await asked(page, "rollout", () => open(page, `#/model/${id}/inside/rollout`));
  assert.equal(first.position, first.tokens.length - 1);
  await map(page).press("ArrowRight");
  await map(page).press("ArrowDown");
  const second = await asked(page, "rollout", () => map(page).press("Enter"));
  assert.equal(second.position, 1);
  await page.getByRole("heading", { name: "What reaches the output at 1" }).waitFor();
});

scene("patching: layers and positions of two prompts", {}, async (page) => {
  await open(page, `#/model/${id}/inside/patching`);
  await page.getByLabel("Clean prompt", { exact: true }).fill("In France");
  await page.getByLabel("Corrupt prompt, of as many tokens").fill("In Poland");
  const found = await asked(page, "patching", () => run(page));
  assert.equal(found.effects.residual.length, layers);
  assert.equal(found.effects.residual[0].length, found.clean_tokens.length);
  await page.getByText("Table", { exact: true }).click();
  assert.equal(await page.locator("figure tbody tr").count(), layers);
});

scene("an edit shows what becomes of the fact and of its neighbor", {}, async (page) => {
  await open(page, `#/model/${id}/inside/edit`);
  await page.getByLabel("Prompt that ends where the answer begins").fill("France is in");
  await page.getByLabel("Subject, as it stands in the prompt").fill("France");
  await page.getByLabel("New answer", { exact: true }).fill("Asia");
  await page.getByLabel("Paraphrases, which should follow").fill("");
  await page.getByLabel("Neighbors, which should not").fill("Poland is in");
  await page.getByLabel("Steps of the search").fill("2");
  const found = await asked(page, "edit", () => run(page));
  assert.deepEqual(
    found.asked.map(({ kind }) => kind),
    ["fact", "neighbor"],
  );
  assert.ok(found.asked[0].after > found.asked[0].before);
  assert.equal(await page.locator("tbody tr").count(), 2);
});

scene("embeddings in Chinese: neighbors, an analogy, a plane; of an encoder too", { lang: "zh" }, async (page) => {
  const near = await asked(page, "neighbors", () => open(page, `#/model/${id}/inside/embeddings`));
  assert.equal(await page.locator("tbody tr").count(), near.neighbors.length);
  const analogy = await asked(page, "analogy", () => page.getByText("类比", { exact: true }).click());
  assert.equal(await page.locator("tbody tr").count(), analogy.nearest.length + analogy.with_question.length);
  const plane = await asked(page, "plane", () => page.getByText("平面", { exact: true }).click());
  assert.equal(await page.locator("figure circle").count(), plane.points.length);
  assert.deepEqual(await accessibilityProblems(page), [], "plane");
  await asked(page, "attention", () => open(page, `#/model/${encoder.id}/inside`));
  assert.equal(await page.getByRole("radiogroup", { name: "观察方式" }).getByRole("radio").count(), 3);
});
