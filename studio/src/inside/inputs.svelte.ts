/** What the reader typed, the same in every view; a place in the model belongs to one model only. */

export const inputs = $state({
  prompt: "The capital of France is",
  corrupt: "The capital of Poland is",
  answer: "Paris",
  other: "Warsaw",
  fact: "The Eiffel Tower is in the city of",
  subject: "The Eiffel Tower",
  target: "Rome",
  paraphrases: "The Eiffel Tower is located in",
  neighbors: "The Louvre is in the city of\nThe capital of Italy is",
  word: "king",
  a: "man",
  b: "king",
  c: "woman",
  words: "king queen man woman dog cat horse Paris London France England one two three",
});

export const lines = (text: string): string[] => text.split("\n").filter((line) => line.trim());
