import assert from "node:assert/strict";
import { open, replied, say, scene, tokens } from "./support.mjs";

const panel = (page) => page.getByRole("region", { name: "Token", exact: true });
const alternatives = (page) => page.locator("[data-alternative]");

scene("a reply streams, is tinted, and each token shows its detail", {}, async (page) => {
  await open(page);
  await page.locator("#composer").fill("Name three colors.");
  await page.keyboard.press("Enter");
  await replied(page);
  assert.match(await page.locator("article[aria-busy] footer").last().innerText(), /tokens\/s.*prefill/s);

  await tokens(page).nth(1).hover();
  await panel(page).getByText("Candidates left").waitFor();
  assert.match(
    await panel(page).locator("dl").innerText(),
    /Probability\s+[\d.<\s]+%\s+Rank\s+\d+\s+Entropy\s+[\d.]+ nat/,
  );
  assert.ok((await alternatives(page).count()) >= 10);

  const tint = () =>
    tokens(page)
      .nth(1)
      .evaluate((span) => getComputedStyle(span).backgroundColor);
  const tinted = await tint();
  await page.getByText("Off", { exact: true }).click();
  assert.notEqual(await tint(), tinted);
});

scene("settings show which alternatives were cut, and by what", { sampling: { top_k: 3 } }, async (page) => {
  await open(page);
  await say(page, "Name three colors.");
  await tokens(page).first().click();
  assert.equal(await panel(page).getByText("top-k", { exact: true }).count(), (await alternatives(page).count()) - 3);
  assert.match(await panel(page).locator("dl").innerText(), /Candidates left\s+3\b/);
});

scene("an alternative branches; both branches stay reachable", {}, async (page) => {
  await open(page);
  await say(page, "Tell me about the sea.");
  const first = await tokens(page).allInnerTexts();
  await tokens(page).nth(3).click();
  const chosen = (await panel(page).locator("tr.chosen").innerText()).split("\n")[0];
  const rows = page.locator("tbody tr:not(.chosen) [data-alternative]");
  const label = await rows.first().innerText();
  assert.notEqual(label, chosen);
  await rows.first().click();
  await replied(page);

  const second = await tokens(page).allInnerTexts();
  assert.deepEqual(second.slice(0, 3), first.slice(0, 3));
  assert.equal(await panel(page).locator("header strong").innerText(), label);
  await panel(page).getByText("chosen by you").waitFor();

  const versions = page.getByRole("group", { name: "Versions" });
  assert.match(await versions.innerText(), /2\/2/);
  await versions.getByRole("button", { name: "Previous version" }).click();
  assert.deepEqual(await tokens(page).allInnerTexts(), first);
  await page.reload();
  assert.match(await versions.innerText(), /1\/2/);
  assert.deepEqual(await tokens(page).allInnerTexts(), first);
});

scene("stop ends a reply", { sampling: { max_tokens: 400 } }, async (page) => {
  await open(page);
  await page.locator("#composer").fill("Write a long story about a lighthouse keeper.");
  await page.keyboard.press("Enter");
  await tokens(page).nth(3).waitFor({ state: "attached", timeout: 60_000 });
  await page.getByRole("button", { name: "Stop" }).click();
  await page.getByText("stopped", { exact: true }).waitFor();
  const count = await tokens(page).count();
  await page.waitForTimeout(700);
  assert.equal(await tokens(page).count(), count);
});

scene(
  "messages are edited, replies regenerated, conversations kept and deleted",
  { sampling: { max_tokens: 6 } },
  async (page) => {
    await open(page);
    await say(page, "Hello there");
    await page.getByRole("button", { name: "Regenerate" }).click();
    await replied(page);
    assert.match(await page.getByRole("group", { name: "Versions" }).innerText(), /2\/2/);

    await page.getByRole("button", { name: "Edit the message" }).click();
    await page.getByRole("textbox", { name: "Edit the message" }).fill("Good morning");
    await page.keyboard.press("Enter");
    await replied(page);
    assert.match(await page.getByRole("article", { name: "You" }).innerText(), /Good morning[^]*2\/2/);

    await page.getByRole("button", { name: "New conversation" }).click();
    await page.getByRole("heading", { name: "Look inside every answer" }).waitFor();
    await page.reload();
    const list = page.getByRole("navigation", { name: "Conversations" });
    await list.getByRole("button", { name: "Good morning", exact: true }).click();
    assert.ok((await tokens(page).count()) > 0);
    await page.getByRole("button", { name: "Clear the conversation" }).click();
    assert.equal(await list.getByRole("button", { name: "Good morning", exact: true }).count(), 0);
  },
);

scene(
  "when the browser's storage is full, the oldest conversation gives up its alternatives",
  { sampling: { max_tokens: 4 } },
  async (page) => {
    await open(page);
    await page.evaluate(() => {
      const alternatives = Array.from({ length: 10 }, (_, i) => [i, "x".repeat(100), 0, 0.1, 0.1, 0]);
      const turn = { model: "", finish: "stop", timing: null, prompt: [] };
      const row = [1, "old", 0, 0.5, 1, 1, 10, 0, alternatives];
      const turns = [
        { ...turn, id: "a", role: "user", parent: null, written: "Old words", tokens: [] },
        { ...turn, id: "b", role: "assistant", parent: "a", written: "", tokens: Array(4000).fill(row) },
      ];
      localStorage["cutaway.chat.old"] = JSON.stringify({
        id: "old",
        system: "",
        updated: 1,
        chosen: { root: "a", a: "b" },
        turns,
      });
      for (const size of [100_000, 1_000])
        try {
          for (let i = 0; ; i++) localStorage[`filler.${size}.${i}`] = "x".repeat(size);
        } catch {
          /* full */
        }
    });
    await page.reload();
    await page.getByRole("button", { name: "New conversation" }).click();
    await say(page, "New words");
    await page.reload();
    const list = page.getByRole("navigation", { name: "Conversations" });
    await list.getByRole("button", { name: "New words", exact: true }).click();
    await tokens(page).first().click();
    assert.ok((await alternatives(page).count()) >= 10);
    await list.getByRole("button", { name: "Old words", exact: true }).click();
    await tokens(page).first().click();
    await panel(page).getByText("were dropped").waitFor();
  },
);

scene(
  "the prompt shows as the tokens the model read, system prompt included",
  { sampling: { max_tokens: 4 } },
  async (page) => {
    await open(page);
    await page.getByRole("button", { name: "System prompt" }).click();
    await page.locator("#system").fill("Answer in rhymes.");
    await say(page, "Hello");
    await page.getByRole("button", { name: /^Prompt, \d+ tokens$/ }).click();
    const shown = (await page.getByRole("dialog").locator("li span").allInnerTexts()).join("");
    assert.match(shown, /rhymes/i);
    assert.match(shown, /Hello/);
  },
);
