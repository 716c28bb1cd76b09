/** Python source as coloured pieces, line by line; enough for reading, no more. */

export type Piece = { text: string; kind: "" | "comment" | "string" | "keyword" | "number" | "name" | "decorator" };

const WORDS =
  "False None True and as assert async await break class continue def del elif else except finally for from if import in is lambda not or pass raise return try while with yield match case";
const KEYWORDS = new Set(WORDS.split(" "));

const PATTERN =
  /(?<comment>#[^\n]*)|(?<string>[rbfRBF]{0,2}(?:"""[\s\S]*?"""|'''[\s\S]*?'''|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'))|(?<decorator>@[\w.]+)|(?<word>[A-Za-z_]\w*)|(?<number>\b\d[\w.]*)/g;

function* pieces(source: string): Generator<Piece> {
  let end = 0;
  let previous = "";
  for (const match of source.matchAll(PATTERN)) {
    if (match.index > end) yield { text: source.slice(end, match.index), kind: "" };
    end = match.index + match[0].length;
    const group = Object.entries(match.groups!).find(([, text]) => text !== undefined)![0];
    yield { text: match[0], kind: group === "word" ? wordKind(match[0], previous) : (group as Piece["kind"]) };
    previous = match[0];
  }
  yield { text: source.slice(end), kind: "" };
}

const wordKind = (word: string, previous: string): Piece["kind"] =>
  KEYWORDS.has(word) ? "keyword" : previous === "def" || previous === "class" ? "name" : "";

/** The pieces of each line; a piece that spans lines is cut at their ends. */
export function highlight(source: string): Piece[][] {
  const lines: Piece[][] = [[]];
  for (const { text, kind } of pieces(source)) {
    const [first, ...others] = text.split("\n");
    lines.at(-1)!.push({ text: first!, kind });
    for (const other of others) lines.push([{ text: other, kind }]);
  }
  return lines;
}
