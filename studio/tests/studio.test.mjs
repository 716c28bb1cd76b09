import assert from "node:assert/strict";
import { readdir, readFile } from "node:fs/promises";
import { test } from "node:test";
import { accessibilityProblems, fromApi, open, replied, say, scene, tokens, words } from "./support.mjs";

const { models } = await fromApi("/models");
const { labs } = await fromApi("/labs");
const { id } = models.find((model) => model.kind === "decoder");
const lab = labs.find((one) => one.latest) ?? labs[0];
const PAGES = [
  "#/chat",
  `#/model/${id}`,
  `#/model/${id}/budget`,
  `#/model/${id}/memory`,
  `#/model/${id}/inside`,
  `#/model/${id}/inside/embeddings`,
  "#/labs",
  `#/labs/${lab.id}`,
  "#/budget",
  "#/engine",
];

const settled = async (page) => {
  await page.getByText(/^(Loading …|正在加载……)$/).waitFor({ state: "detached" });
  await page.locator("main h1, main h2, main h3, main p").first().waitFor();
  await page.locator("[aria-busy=true]").waitFor({ state: "detached" });
};

const sources = async (pattern) => {
  const folder = new URL("../src/", import.meta.url);
  const names = (await readdir(folder, { recursive: true })).filter((name) => pattern.test(name));
  return Promise.all(names.map(async (name) => [name, await readFile(new URL(name, folder), "utf8")]));
};

test("every word exists in both languages and is used", async () => {
  const table = await words();
  const files = (await sources(/\.(svelte|ts)$/)).filter(([name]) => name !== "i18n.ts");
  const source = files.map(([, text]) => text).join("\n");
  const composed = [...source.matchAll(/`([\w.]+\.)\$\{/g)].map((match) => match[1]);
  for (const [key, [en, zh]] of Object.entries(table)) {
    assert.ok(en && zh, key);
    assert.deepEqual(
      [...en.matchAll(/\{\w+\}/g)].map(String).sort(),
      [...zh.matchAll(/\{\w+\}/g)].map(String).sort(),
      key,
    );
    assert.ok(
      source.includes(`"${key}"`) || source.includes(`'${key}'`) || composed.some((start) => key.startsWith(start)),
      `${key} is not used`,
    );
  }
});

test("no words are written into the markup", async () => {
  const proper = /\b(Cutaway|CSV|JSON|RoPE|softmax|norm|out|down|id)\b/g;
  for (const [name, source] of await sources(/\.svelte$/)) {
    let markup = source.replace(/<(script|style)[^]*?<\/\1>|<!--[^]*?-->/g, "");
    while (/\{[^{}]*\}/.test(markup)) markup = markup.replace(/\{[^{}]*\}/g, "");
    const text = markup.replace(/<[^>]*>/g, " ").replace(proper, "");
    assert.deepEqual(text.match(/[A-Za-z]{2,}/g) ?? [], [], name);
    const labels = [...markup.matchAll(/(?:aria-label|title|placeholder)="([^"]*)"/g)].map((match) => match[1]);
    assert.deepEqual(
      labels.filter((label) => /[A-Za-z]{2,}/.test(label)),
      [],
      name,
    );
  }
});

scene("switching the language leaves no English behind", { sampling: { max_tokens: 4 } }, async (page) => {
  const english = Object.values(await words())
    .filter(([en, zh]) => en !== zh && /^[A-Z]|\s/.test(en))
    .map(([en]) => en);
  const patterns = english.map(
    (en) => new RegExp(`^${en.replace(/[.*+?^$()|[\]\\]/g, "\\$&").replace(/\{\w+\}/g, "\\S+")}$`),
  );
  await open(page);
  await say(page, "Hello");
  await tokens(page).first().click();
  await page.getByRole("button", { name: "中文" }).click();
  assert.equal(await page.locator("html").getAttribute("lang"), "zh-CN");
  for (const hash of PAGES) {
    await open(page, hash);
    await settled(page);
    const shown = await page.evaluate(() => {
      const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
      const texts = [document.title];
      while (walker.nextNode())
        if (!walker.currentNode.parentElement.closest("[lang=en], script, noscript, .text, .mono"))
          texts.push(walker.currentNode.data);
      for (const element of document.querySelectorAll("[aria-label], [title], [placeholder]"))
        for (const name of ["aria-label", "title", "placeholder"]) texts.push(element.getAttribute(name) ?? "");
      return texts.map((text) => text.trim()).filter(Boolean);
    });
    assert.deepEqual(
      shown.filter((text) => patterns.some((pattern) => pattern.test(text))),
      [],
      hash,
    );
  }
  await page.getByRole("button", { name: "English" }).click();
  await page.getByRole("link", { name: "Labs", exact: true }).waitFor();
});

scene("the theme follows the system until it is chosen", { colorScheme: "dark" }, async (page) => {
  const brightness = () =>
    page.evaluate(() =>
      getComputedStyle(document.documentElement)
        .backgroundColor.match(/\d+/g)
        .slice(0, 3)
        .reduce((a, b) => a + +b, 0),
    );
  await open(page);
  await settled(page);
  assert.ok((await brightness()) < 200);
  await page.getByRole("button", { name: "Theme: as the system" }).click();
  await page.waitForFunction(() => document.documentElement.style.colorScheme === "light");
  assert.ok((await brightness()) > 600);
  await page.reload();
  await page.getByRole("button", { name: "Theme: light" }).waitFor();
});

scene("the keyboard alone is enough", {}, async (page) => {
  await open(page);
  await settled(page);
  await page.keyboard.press("Tab");
  assert.ok(await page.evaluate(() => document.activeElement.matches(".skip")));
  await page.keyboard.press("?");
  await page.getByRole("dialog").waitFor();
  await page.keyboard.press("Escape");
  await page.keyboard.press("/");
  await page.keyboard.type("Tell me about the sea.");
  await page.keyboard.press("Enter");
  await replied(page);

  for (let i = 0; i < 40 && !(await page.evaluate(() => document.activeElement.matches(".text"))); i++)
    await page.keyboard.press("Shift+Tab");
  await page.keyboard.press("ArrowRight");
  await page.keyboard.press("ArrowRight");
  assert.equal(await page.locator("[data-token].active").getAttribute("data-token"), "2");
  await page.keyboard.press("Enter");
  await page.keyboard.press("ArrowDown");
  await page.keyboard.press("Enter");
  await replied(page);
  assert.match(await page.getByRole("group", { name: "Versions" }).innerText(), /2\/2/);

  await page.locator("body").press("2");
  await page.waitForURL(/#\/model/);
  await page.locator("svg [data-module]").first().focus();
  await page.keyboard.press("Enter");
  await page.waitForURL(/architecture/);
  await page.keyboard.press("3");
  await page.waitForURL(/#\/labs/);
  await page.keyboard.press("4");
  await page.waitForURL(/#\/budget/);
});

for (const colorScheme of ["light", "dark"]) {
  scene(
    `axe finds nothing serious, ${colorScheme}`,
    { colorScheme, sampling: { top_k: 3, max_tokens: 8 } },
    async (page) => {
      await open(page);
      await settled(page);
      await say(page, "Hello");
      await tokens(page).first().click();
      assert.deepEqual(await accessibilityProblems(page), [], "chat with a token open");
      for (const hash of PAGES) {
        await open(page, hash);
        await settled(page);
        assert.deepEqual(await accessibilityProblems(page), [], hash);
      }
      await page.keyboard.press("?");
      assert.deepEqual(await accessibilityProblems(page), [], "help");
    },
  );
}

scene("a refused request says why and can be tried again", { expected: /400/ }, async (page) => {
  await page.route("**/studio/api/generate", (route) =>
    route.fulfill({
      status: 400,
      json: {
        error: { message: "temperature: must be at least 0", type: "invalid_request_error", param: null, code: null },
      },
    }),
  );
  await open(page);
  await page.locator("#composer").fill("Hello");
  await page.keyboard.press("Enter");
  await page.getByText("temperature: must be at least 0").waitFor();
  await page.unroute("**/studio/api/generate");
  await page.getByRole("button", { name: "Try again" }).click();
  await replied(page);
});

scene("an unreachable server is named, and found again", { expected: /ERR_FAILED|Failed to load/ }, async (page) => {
  await page.route("**/studio/api/models", (route) => route.abort());
  await open(page);
  await page.getByRole("alert").getByText("The server cannot be reached").waitFor();
  await page.unroute("**/studio/api/models");
  await page.getByRole("button", { name: "Try again" }).click();
  await page.locator("#composer").waitFor();
});

for (const width of [1280, 900]) {
  scene(`nothing is wider than a ${width} pixel window`, {}, async (page) => {
    await page.setViewportSize({ width, height: 800 });
    for (const hash of PAGES) {
      await open(page, hash);
      await settled(page);
      assert.ok((await page.evaluate(() => document.documentElement.scrollWidth)) <= width, hash);
    }
  });
}
