import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { accessibilityProblems, fromApi, open, scene } from "./support.mjs";

const { chips, models } = await fromApi("/budget");

/** The budget that `act` asks for, once it is on the page. */
async function asked(page, fits, act) {
  const answering = page.waitForResponse(
    (response) => response.request().method() === "POST" && fits(response.request().postDataJSON()),
  );
  await act();
  const answer = await (await answering).json();
  await page.getByText(answer.sections.at(-1).figures.at(-1).numbers, { exact: false }).last().waitFor();
  return answer;
}

const figures = ({ sections }) => Object.fromEntries(sections.flatMap((s) => s.figures.map((f) => [f.name, f])));

scene("a published shape, with formulas; knobs change the numbers", {}, async (page) => {
  await asked(page, () => true, () => open(page, "#/budget"));
  const llama = await asked(
    page,
    (body) => body.published,
    () => page.getByLabel("Model", { exact: true }).selectOption("published:llama-3-8b"),
  );
  const row = page.getByRole("region", { name: "KV cache", exact: true }).locator("tr", { hasText: "KV per token" });
  assert.match(await row.innerText(), /128 KiB[^]*L·2·G·K·b/);
  const more = await asked(
    page,
    (body) => body.batch === 2,
    () => page.getByLabel("Sequences at once").press("ArrowRight"),
  );
  assert.equal(figures(more)["KV cache"].value, 2 * figures(llama)["KV cache"].value);

  const training = await asked(
    page,
    (body) => body.purpose === "training",
    () => page.getByText("Training", { exact: true }).click(),
  );
  await page.getByRole("region", { name: "Memory of training" }).waitFor();
  assert.ok(figures(training)["chip hours"].value > 0);

  const [file] = await Promise.all([
    page.waitForEvent("download"),
    page.getByRole("button", { name: "CSV", exact: true }).click(),
  ]);
  const lines = (await readFile(await file.path(), "utf8")).trimEnd().split("\n");
  assert.equal(lines.length, 1 + training.sections.flatMap((s) => s.figures).length);
});

scene("a chip without bfloat16 is asked for what it has", {}, async (page) => {
  const lacking = chips.find((chip) => !chip.dtypes.includes("bfloat16"));
  await asked(page, () => true, () => open(page, "#/budget"));
  const answer = await asked(
    page,
    (body) => body.chip === lacking.name,
    () => page.getByLabel("Chip", { exact: true }).selectOption(lacking.name),
  );
  assert.equal(answer.request.dtype, "float32");
});

scene("every figure of every shape has its words in Chinese", { lang: "zh" }, async (page) => {
  await asked(page, () => true, () => open(page, "#/budget"));
  for (const name of ["deepseek-v3", "deberta-v3-base", models[0].name])
    for (const purpose of ["推理", "训练"]) {
      await page.getByLabel("模型", { exact: true }).selectOption(`published:${name}`);
      await page.getByText(purpose, { exact: true }).click();
      await page.getByRole("region", { name: purpose === "推理" ? "KV 缓存" : "训练内存", exact: true }).waitFor();
      assert.deepEqual(await page.locator("td.name[lang=en]").allInnerTexts(), [], name);
    }
  assert.deepEqual(await accessibilityProblems(page), []);
});
